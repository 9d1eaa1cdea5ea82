//! What is said on the control socket: JSON, a line a request, a line an answer, in order.
//!
//! Called by the socket's two ends; knows no socket.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::machine::remote::Remote;

/// The longest request, in bytes; one that is longer is no request of ours.
pub(super) const LONGEST: usize = 4096;

/// What a machine is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// What it does.
    Status,
    /// What its exits went into so far.
    Stats,
    /// To end.
    Stop,
    /// To have all vCPUs stand still.
    Pause,
    /// To let them go on.
    Resume,
}

/// A line that is sent to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What is asked.
    pub command: Command,
}

/// The line that comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// What was asked for; an empty object where there is nothing to say.
    Ok(Value),
    /// Why not, in words.
    Error(String),
}

/// Answers a line.
pub(super) fn answer(line: &[u8], remote: &Remote) -> Response {
    match parse(line) {
        Ok(Request { command }) => run(command, remote),
        Err(refused) => refused,
    }
}

fn parse(line: &[u8]) -> Result<Request, Response> {
    serde_json::from_slice(line).map_err(|e| {
        let example = r#"{"command": "status"}"#;
        Response::Error(format!("not understood: {e}; a request is a line like {example}"))
    })
}

fn run(command: Command, remote: &Remote) -> Response {
    let done = match command {
        Command::Status => return value(&remote.status()),
        Command::Stats => return value(&remote.figures()),
        Command::Stop => {
            remote.stop();
            Ok(())
        }
        Command::Pause => remote.pause(),
        Command::Resume => remote.resume(),
    };
    match done {
        Ok(()) => Response::Ok(json!({})),
        Err(why) => Response::Error(why.to_owned()),
    }
}

fn value(data: &impl Serialize) -> Response {
    match serde_json::to_value(data) {
        Ok(value) => Response::Ok(value),
        Err(e) => Response::Error(format!("a bug in ringfence: {e}")),
    }
}

/// What is sent for it: one line.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    // Fails for maps whose keys are no text, which neither message has.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_from_garbage() {
        let request = Request { command: Command::Stats };
        assert_eq!(parse(b" {\"command\": \"stats\"}\r"), Ok(request));
        assert_eq!(parse(&line(&request)), Ok(request));
        for bad in ["", "stats", "{}", "[]", "\0", r#"{"command":"start"}"#, "{\"command\":1}"] {
            let Err(Response::Error(why)) = parse(bad.as_bytes()) else { panic!("{bad}") };
            assert!(why.starts_with("not understood: ") && !why.contains('\n'), "{why}");
        }
        let Err(Response::Error(why)) = parse(br#"{"command":"stop","at":1}"#) else { panic!() };
        assert!(why.contains("at"), "{why}");
    }

    #[test]
    fn answers_are_one_line() {
        let text = |response| String::from_utf8(line(&response)).unwrap();
        assert_eq!(text(Response::Ok(json!({}))), "{\"ok\":{}}\n");
        assert_eq!(text(Response::Error("a\nb".into())), "{\"error\":\"a\\nb\"}\n");
    }
}

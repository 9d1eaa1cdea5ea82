//! The other end of the control socket: one request, one answer. The command line's.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::protocol::{self, Command, Request, Response};

/// How long an answer may take: longer than a machine waits for its vCPUs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer, in bytes: tables of statistics are bounded, far below this.
const LONGEST: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket there, or nobody listens.
    #[error("no machine listens there ({0})")]
    NoMachine(io::Error),
    /// The connection broke, or took too long.
    #[error("the machine gave no answer: {0}")]
    NoAnswer(io::Error),
    /// It is not one of ours.
    #[error("what listens there is no machine: {0}")]
    NotUnderstood(serde_json::Error),
    /// The machine refused.
    #[error("the machine says: {0}")]
    Refused(String),
}

/// Asks the machine whose control socket is `path`.
///
/// # Errors
/// Says why there is no answer.
pub fn ask(path: &Path, command: Command) -> Result<Value, Error> {
    let stream = UnixStream::connect(path).map_err(Error::NoMachine)?;
    let line = exchange(stream, command).map_err(Error::NoAnswer)?;
    match serde_json::from_slice(&line).map_err(Error::NotUnderstood)? {
        Response::Ok(value) => Ok(value),
        Response::Error(why) => Err(Error::Refused(why)),
    }
}

fn exchange(mut stream: UnixStream, command: Command) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&protocol::line(&Request { command }))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        _ => Err(io::Error::other("the connection ended; the machine may have, too")),
    }
}

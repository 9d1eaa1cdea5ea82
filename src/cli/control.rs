//! `ringfence control`: asks a machine that runs, and prints its answer as text or JSON.

use std::io::{self, Write};

use serde::Deserialize;
use serde_json::Value;

use super::args::ControlArgs;
use crate::control::client::{self, Error};
use crate::control::protocol::Command;
use crate::machine::remote::Statistics;
use crate::verdict::Refusal;

/// Asks; gives back the exit code.
pub(super) fn ask(args: &ControlArgs) -> u8 {
    let answer = match client::ask(&args.socket, args.command) {
        Ok(answer) => answer,
        Err(e) => return refused(args, &e),
    };
    let mut out = io::stdout().lock();
    let printed = match args.command {
        _ if args.json => writeln!(out, "{answer:#}"),
        Command::Status => shown(out, answer, status),
        Command::Stats => shown(out, answer, stats),
        Command::Stop | Command::Pause | Command::Resume => Ok(()),
    };
    super::printed(printed)
}

fn refused(args: &ControlArgs, e: &Error) -> u8 {
    let advice = match e {
        Error::NoMachine(_) => "; is it running, with --control?",
        _ => "",
    };
    super::tell(format_args!("{}: {e}{advice}", args.socket.display()));
    super::code(Refusal::Host)
}

/// Prints an answer by its fields; another version's, which has others, as it is.
fn shown<T: for<'de> Deserialize<'de>, W: Write>(
    mut out: W,
    answer: Value,
    print: fn(&mut W, &T) -> io::Result<()>,
) -> io::Result<()> {
    match T::deserialize(&answer) {
        Ok(fields) => print(&mut out, &fields),
        Err(_) => writeln!(out, "{answer:#}"),
    }
}

/// The part of a status that a person wants to see.
#[derive(Deserialize)]
struct Status {
    state: String,
    wall_seconds: f64,
    timeout_seconds: Option<f64>,
    restarts: u64,
    pid: u32,
    image: Image,
    backend: String,
    memory: u64,
    vcpus: Vec<Vcpu>,
}

#[derive(Deserialize)]
struct Image {
    path: String,
    description: Option<String>,
}

#[derive(Deserialize)]
struct Vcpu {
    state: String,
    rip: Option<u64>,
    function: Option<String>,
}

fn status(out: &mut impl Write, it: &Status) -> io::Result<()> {
    let limit = it.timeout_seconds.map(|limit| format!(" of at most {limit} s"));
    let restarts =
        if it.restarts > 0 { format!(", restarts: {}", it.restarts) } else { String::new() };
    let limit = limit.unwrap_or_default();
    writeln!(
        out,
        "{} for {:.1} s{limit}{restarts} (process {})",
        it.state, it.wall_seconds, it.pid
    )?;
    let description = it.image.description.as_deref().unwrap_or("unknown");
    writeln!(out, "image   {} ({description})", it.image.path)?;
    writeln!(out, "machine {} MiB, {}", it.memory >> 20, it.backend)?;
    for (number, vcpu) in it.vcpus.iter().enumerate() {
        let rip = vcpu.rip.map(|rip| format!(" at {rip:#x}")).unwrap_or_default();
        let function = vcpu.function.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
        writeln!(out, "vCPU {number:<3}{}{rip}{function}", vcpu.state)?;
    }
    Ok(())
}

/// The part of the figures that a person wants to see.
#[derive(Deserialize)]
struct Figures {
    wall_seconds: f64,
    exits: serde_json::Map<String, Value>,
    counted_seconds: f64,
    from_start: bool,
    stats: Statistics,
    silent: Vec<usize>,
}

fn stats(out: &mut impl Write, it: &Figures) -> io::Result<()> {
    let (counted, wall) = (it.counted_seconds, it.wall_seconds);
    if it.from_start {
        writeln!(out, "after {wall:.1} s")?;
        write!(out, "{}", it.stats)?;
    } else {
        writeln!(out, "exits since the start, {wall:.1} s ago")?;
        for (kind, count) in &it.exits {
            writeln!(out, "  {kind:<36} {count:>11}")?;
        }
        writeln!(out, "in full since `stats` was first asked for, {counted:.1} s ago")?;
        write!(out, "{}", it.stats)?;
    }
    for id in &it.silent {
        writeln!(out, "vCPU {id} did not answer, and is missing here")?;
    }
    Ok(())
}

//! `ringfence guests`: what ringfence carries.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::args::GuestsArgs;
use crate::guests::{self, GUESTS, Guest};
use crate::verdict::Refusal;

/// A guest as JSON.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    about: &'static str,
    args: &'static [&'static str],
    input: &'static str,
    exit_code: u8,
    says: &'static [&'static str],
    limit_seconds: u64,
    bytes: usize,
    not_on: Vec<Skip>,
}

#[derive(Serialize)]
struct Skip {
    backend: &'static str,
    reason: &'static str,
}

impl From<&'static Guest> for Row {
    fn from(guest: &'static Guest) -> Self {
        let skip = |&(backend, reason): &_| Skip { backend, reason };
        Self {
            name: guest.name,
            about: guest.about,
            args: guest.args,
            input: guest.input,
            exit_code: guest.verdict,
            says: guest.says,
            limit_seconds: guest.limit.as_secs(),
            bytes: guest.image.len(),
            not_on: guest.not_on.iter().map(skip).collect(),
        }
    }
}

pub(super) fn list(args: &GuestsArgs) -> u8 {
    let chosen: Vec<&'static Guest> = match args.name.as_deref() {
        None => GUESTS.iter().collect(),
        Some(name) => match guests::find(name) {
            Some(guest) => vec![guest],
            None => {
                super::tell(format_args!(
                    "there is no guest {name:?}; `ringfence guests` lists them"
                ));
                return super::code(Refusal::Usage);
            }
        },
    };
    let mut out = io::stdout().lock();
    let printed = if args.json {
        let rows: Vec<Row> = chosen.into_iter().map(Row::from).collect();
        serde_json::to_writer_pretty(&mut out, &rows)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else if args.name.is_some() {
        chosen.iter().try_for_each(|guest| details(&mut out, guest))
    } else {
        table(&mut out, &chosen)
    };
    super::printed(printed)
}

fn table(out: &mut impl Write, guests: &[&Guest]) -> io::Result<()> {
    let width = guests.iter().map(|guest| guest.name.len()).max().unwrap_or(0);
    let (bold, plain) = if io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    for guest in guests {
        writeln!(out, "{bold}@{:width$}{plain}  {:3}  {}", guest.name, guest.verdict, guest.about)?;
    }
    Ok(())
}

fn details(out: &mut impl Write, guest: &Guest) -> io::Result<()> {
    writeln!(out, "@{}: {}", guest.name, guest.about)?;
    writeln!(out, "  image      {} bytes", guest.image.len())?;
    writeln!(out, "  arguments  {}", guest.args.join(" "))?;
    writeln!(out, "  exit code  {}", guest.verdict)?;
    writeln!(out, "  limit      {} s", guest.limit.as_secs())?;
    if !guest.input.is_empty() {
        writeln!(out, "  reads      {:?}", guest.input)?;
    }
    for says in guest.says {
        writeln!(out, "  says       {says}")?;
    }
    for (backend, reason) in guest.not_on {
        writeln!(out, "  not on     {backend}: {reason}")?;
    }
    Ok(())
}

//! What of a run is watched, and where it goes: --trace, --stats, --profile.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::args::RunArgs;
use super::run::write_whole;
use crate::machine::{Error, Machine, Observe, TraceOutput};

/// What was asked for; the trace's file is made.
pub(super) fn observe(args: &RunArgs) -> Result<Observe, Error> {
    let trace = args.trace.as_deref().map(|path| trace_output(args, path)).transpose()?;
    Ok(Observe { trace, stats: args.stats, profile: args.profile.is_some() })
}

fn trace_output(args: &RunArgs, path: &Path) -> Result<TraceOutput, Error> {
    let (name, file) = if path == Path::new("-") {
        let copy = io::stdout().as_fd().try_clone_to_owned();
        ("standard output".to_owned(), copy.map(File::from))
    } else {
        (path.display().to_string(), File::create(path))
    };
    let doing = format!("make the trace's file {name}");
    let file = file.map_err(|source| Error::Host { doing, source })?;
    Ok(TraceOutput { name, file, style: args.trace_style() })
}

/// Writes the profile of a machine that has ended.
pub(super) fn write_profile(args: &RunArgs, machine: &Machine) -> Result<(), Error> {
    let (Some(path), Some(folded)) = (&args.profile, machine.profile()) else { return Ok(()) };
    let doing = format!("write the profile {}", path.display());
    write_whole(path, folded.as_bytes()).map_err(|source| Error::Host { doing, source })
}

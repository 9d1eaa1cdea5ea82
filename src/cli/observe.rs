//! What of a run is watched, and where it goes: --trace, --stats, --profile, --coverage.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::args::RunArgs;
use crate::machine::{Error, Machine, Observe, TraceOutput, check_writable, write_whole};

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

/// Can what is to be written at the end be written?
pub(super) fn check(args: &RunArgs, core: Option<&Path>) -> Result<(), Error> {
    let files = [("profile", &args.profile), ("coverage", &args.coverage)];
    for (what, path) in files.into_iter().filter_map(|(what, path)| Some((what, path.as_ref()?))) {
        let doing = format!("write the {what} {}", path.display());
        check_writable(path).map_err(|source| Error::Host { doing, source })?;
    }
    core.map_or(Ok(()), Machine::check_core)
}

/// Writes the profile of a machine that has ended.
pub(super) fn write_profile(args: &RunArgs, machine: &Machine) -> Result<(), Error> {
    let (Some(path), Some(folded)) = (&args.profile, machine.profile()) else { return Ok(()) };
    let doing = format!("write the profile {}", path.display());
    write_whole(path, folded.as_bytes()).map_err(|source| Error::Host { doing, source })
}

/// Writes the counters of a machine that has ended.
pub(super) fn write_coverage(args: &RunArgs, machine: &Machine) -> Result<(), Error> {
    let Some(path) = &args.coverage else { return Ok(()) };
    let doing = format!("write the coverage {}", path.display());
    write_whole(path, &machine.coverage()?.to_bytes())
        .map_err(|source| Error::Host { doing, source })
}

//! `ringfence run`: what was typed becomes a machine, its verdict words and an exit code.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use clap::Parser;
use log::LevelFilter;

use super::args::{Cli, Command, ExitCodes, IfNoKvm, RunArgs};
use super::terminal::{Escapes, Key, Raw};
use super::{dry_run, observe};
use crate::config::{Config, Description, SerialTarget, is_carried};
use crate::control::gdb;
use crate::guests;
use crate::machine::{self, Error, Input, Io, Keystroke, Machine, Output, Report, signals};
use crate::verdict::{Refusal, Verdict};

/// Runs the command; gives back the exit code.
pub(super) fn run(args: &RunArgs) -> u8 {
    crate::log::show(level(args));
    let begin = Instant::now();
    let config = match resolve(args) {
        Ok(config) => config,
        Err(e) => {
            return conclude(
                args,
                &e.verdict(),
                None,
                Report::new(&e.verdict(), None, begin.elapsed()),
            );
        }
    };
    if args.dry_run {
        return plan(args, &config, begin);
    }
    let (verdict, report) = match execute(args, &config) {
        Ok((verdict, report)) => (verdict, report),
        Err(e) => {
            let verdict = if_no_kvm(args, e.verdict());
            let report = Report::new(&verdict, Some(&config), begin.elapsed());
            (verdict, report)
        }
    };
    conclude(args, &verdict, Some(&config), report)
}

fn level(args: &RunArgs) -> LevelFilter {
    match args.verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    }
}

/// What was typed, over the description file, over what a carried guest needs.
fn resolve(args: &RunArgs) -> Result<Config, Error> {
    let mut described = args.description();
    if let Some(path) = &args.config {
        described = described.over(read_description(path)?);
    }
    if let Some(image) = described.image.clone().filter(|image| is_carried(image)) {
        described = described.over(carried(&image));
    }
    Ok(Config::resolve(described)?)
}

fn read_description(path: &Path) -> Result<Description, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::Read {
        what: "machine description",
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    Ok(Description::parse(&text, path)?)
}

/// The arguments of a carried guest's row; an unknown one is found out when it is read.
fn carried(image: &Path) -> Description {
    let Some(guest) = guests::find(&image.to_string_lossy()) else { return Description::default() };
    let words = ["ringfence", "run"].into_iter().chain(guest.args.iter().copied());
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Run(args) }) => args.description(),
        _ => Description::default(),
    }
}

fn plan(args: &RunArgs, config: &Config, begin: Instant) -> u8 {
    let plan = match machine::plan(config) {
        Ok(plan) => plan,
        Err(e) => {
            let report = Report::new(&e.verdict(), Some(config), begin.elapsed());
            return conclude(args, &e.verdict(), Some(config), report);
        }
    };
    super::printed(dry_run::print(&plan, args.json))
}

fn execute(args: &RunArgs, config: &Config) -> Result<(Verdict, Report), Error> {
    let host = |doing: &str| {
        let doing = doing.to_owned();
        |source| Error::Host { doing, source }
    };
    let gdb = listen(args)?;
    let signal = signals::catch().map_err(host("catch signals"))?;
    let raw = match config.serial {
        SerialTarget::Stdio => Raw::new().map_err(host("make the terminal raw"))?,
        _ => None,
    };
    let observe = observe::observe(args)?;
    let io = Io { signal: Some(signal), observe, ..connect(config, raw.is_some())? };
    let mut machine = Machine::new(config.clone(), io)?;
    let gdb = gdb.map(|server| start(args, server, &mut machine)).transpose()?;
    let verdict = machine.run();
    drop(raw);
    machine.autopsy();
    if let Some(path) = &config.core {
        machine.write_core(path)?;
    }
    if let Some(session) = gdb {
        session.finish();
    }
    let report = machine.report();
    observe::write_profile(args, &machine)?;
    // The kernel takes the VM down with the process, faster than piece by piece.
    std::mem::forget(machine);
    Ok((verdict, report))
}

/// The socket for gdb: before anything else, so that a bad address costs nothing.
fn listen(args: &RunArgs) -> Result<Option<gdb::Server>, Error> {
    let Some(address) = &args.gdb else { return Ok(None) };
    let bound = gdb::Server::bind(address);
    let doing = format!("listen for gdb on {address}");
    bound.map(Some).map_err(|source| Error::Host { doing, source })
}

fn start(
    args: &RunArgs,
    server: gdb::Server,
    machine: &mut Machine,
) -> Result<gdb::Session, Error> {
    if !args.quiet {
        eprintln!("ringfence: gdb: target remote {}", server.address());
    }
    let debugger = machine.debugger(args.gdb_wait)?;
    let doing = "start a thread for gdb".to_owned();
    server.start(debugger).map_err(|source| Error::Host { doing, source })
}

/// The host's side of the serial line.
fn connect(config: &Config, raw: bool) -> Result<Io, Error> {
    let refused = |doing: String| |source| Error::Host { doing, source };
    Ok(match &config.serial {
        SerialTarget::Null => Io::default(),
        SerialTarget::File(path) => {
            let doing = format!("make the serial output's file {}", path.display());
            let file = File::create(path).map_err(refused(doing))?;
            Io { output: Output::File(path.display().to_string(), file), ..Io::default() }
        }
        SerialTarget::Stdio => {
            let copy = io::stdout().as_fd().try_clone_to_owned();
            let file = File::from(copy.map_err(refused("use standard output".to_owned()))?);
            let output = Output::File("standard output".to_owned(), file);
            Io { output, input: standard_input(raw)?, ..Io::default() }
        }
    })
}

fn standard_input(raw: bool) -> Result<Input, Error> {
    let stdin = io::stdin();
    if stdin.is_terminal() && !raw {
        return Ok(Input::None); // a background process must not read its terminal
    }
    let copy = stdin.as_fd().try_clone_to_owned();
    let file = copy
        .map(File::from)
        .map_err(|source| Error::Host { doing: "use standard input".to_owned(), source })?;
    if is_null(&file) {
        return Ok(Input::None); // nothing will come: a thread that waits for it is not needed
    }
    if !raw {
        return Ok(Input::File { file, keys: None });
    }
    let mut escapes = Escapes::default();
    let keys = move |key| match escapes.key(key) {
        Key::Guest(key) => Keystroke::Guest(key),
        Key::Nothing => Keystroke::Nothing,
        Key::Quit => Keystroke::Stop(Verdict::Signal(libc::SIGINT as u8)),
    };
    Ok(Input::File { file, keys: Some(Box::new(keys)) })
}

/// Is it /dev/null (Linux, Documentation/admin-guide/devices.txt: major 1, minor 3)?
fn is_null(file: &File) -> bool {
    let device = libc::makedev(1, 3);
    file.metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == device)
}

fn if_no_kvm(args: &RunArgs, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Refused { refusal: Refusal::NoKvm, message: reason }
            if args.if_no_kvm == IfNoKvm::Skip =>
        {
            Verdict::Skipped { reason }
        }
        verdict => verdict,
    }
}

/// Says what there is to say, writes the report, gives back the exit code.
fn conclude(args: &RunArgs, verdict: &Verdict, config: Option<&Config>, report: Report) -> u8 {
    let shows =
        if args.quiet { matches!(verdict, Verdict::Refused { .. }) } else { speaks(args, verdict) };
    if shows {
        // The guest's last line may be unfinished: a line of our own starts afresh.
        let fresh = needs_newline(config, &report);
        let page = report.autopsy.as_ref().map_or(String::new(), |it| format!("ringfence: {it}"));
        let _ = writeln!(io::stderr(), "{fresh}{page}ringfence: {verdict}");
    }
    if let Some(stats) = &report.stats {
        let _ = write!(io::stderr(), "{stats}"); // a closed standard error has nobody to tell
    }
    if let Some(path) = &args.report
        && let Err(e) = write_report(path, &report)
    {
        super::tell(format_args!("cannot write the report {}: {e}", path.display()));
        return super::code(Refusal::Host);
    }
    match args.exit_code {
        ExitCodes::Ringfence => verdict.exit_code(),
        ExitCodes::Qemu => verdict.qemu_exit_code(),
    }
}

/// Success and the guest's own failure code speak for themselves, unless asked for.
fn speaks(args: &RunArgs, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Success(_) | Verdict::Failed { .. } => args.verbose > 0,
        _ => true,
    }
}

fn needs_newline(config: Option<&Config>, report: &Report) -> &'static str {
    let on_screen = config.is_some_and(|config| config.serial == SerialTarget::Stdio)
        && io::stdout().is_terminal()
        && io::stderr().is_terminal();
    let unfinished = !report.serial.tail.is_empty() && !report.serial.tail.ends_with('\n');
    if on_screen && unfinished { "\n" } else { "" }
}

fn write_report(path: &Path, report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Writes a file whole or not at all: a reader never finds half of one.
pub(super) fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    if path == Path::new("-") {
        return io::stdout().write_all(text);
    }
    if path.exists() && !path.is_file() {
        return std::fs::write(path, text); // /dev/stderr, a FIFO: nothing to replace
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".part{}", std::process::id()));
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&part); // the first error is the one to tell
    }
    written
}

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
use super::{dry_run, observe, same_file};
use crate::config::{Config, Description, SerialTarget, is_carried};
use crate::control::{self, gdb};
use crate::guests;
use crate::machine::{
    self, Error, Input, Io, Keystroke, Machine, Output, Report, chain, check_writable, signals,
    write_whole,
};
use crate::verdict::{Refusal, Verdict};

/// Runs the command; gives back the exit code.
pub(super) fn run(args: &RunArgs) -> u8 {
    crate::log::show(level(args));
    let begin = Instant::now();
    let described = describe(args);
    let typed = || args.description();
    if let Err(words) = same_file::check(args, described.as_ref().unwrap_or(&typed())) {
        super::tell(format_args!("{words}"));
        return super::code(Refusal::Usage); // no report: it may be what would be destroyed
    }
    let config = match described.and_then(|it| Ok(Config::resolve(it)?)) {
        Ok(config) => config,
        Err(e) => return conclude(args, None, &Outcome::new(e.verdict(), None, begin)),
    };
    if args.dry_run {
        return plan(args, &config, begin);
    }
    if let Some(path) = &args.report
        && let Err(e) = check_writable(path)
    {
        return no_report(path, &e);
    }
    let outcome = execute(args, &config)
        .unwrap_or_else(|e| Outcome::new(if_no_kvm(args, e.verdict()), Some(&config), begin));
    conclude(args, Some(&config), &outcome)
}

/// What became of a run.
struct Outcome {
    verdict: Verdict,
    report: Report,
    /// What could not be written when the guest had ended.
    unwritten: Vec<Error>,
}

impl Outcome {
    /// One that nothing was counted of.
    fn new(verdict: Verdict, config: Option<&Config>, begin: Instant) -> Self {
        let report = Report::new(&verdict, config, begin.elapsed());
        Self { verdict, report, unwritten: Vec::new() }
    }
}

fn level(args: &RunArgs) -> LevelFilter {
    match args.verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    }
}

/// What was typed, over the description file, over what a carried guest needs.
fn describe(args: &RunArgs) -> Result<Description, Error> {
    let mut described = args.description();
    if let Some(path) = &args.config {
        described = described.over(read_description(path)?);
    }
    if let Some(image) = described.image.clone().filter(|image| is_carried(image)) {
        described = described.over(carried(&image));
    }
    Ok(described)
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
pub(super) fn carried(image: &Path) -> Description {
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
            let outcome = Outcome::new(e.verdict(), Some(config), begin);
            return conclude(args, Some(config), &outcome);
        }
    };
    super::printed(dry_run::print(&plan, args.json))
}

fn execute(args: &RunArgs, config: &Config) -> Result<Outcome, Error> {
    let host = |doing: &str| {
        let doing = doing.to_owned();
        |source| Error::Host { doing, source }
    };
    let (gdb, control) = (listen(args)?, open_control(args)?);
    let signal = signals::catch().map_err(host("catch signals"))?;
    let raw = match config.serial {
        SerialTarget::Stdio => Raw::new().map_err(host("make the terminal raw"))?,
        _ => None,
    };
    observe::check(args, config.core.as_deref())?;
    let observe = observe::observe(args)?;
    let io = Io { signal: Some(signal), observe, ..connect(config, raw.is_some())? };
    let mut machine = Machine::new(config.clone(), io)?;
    if args.coverage.is_some() {
        machine.coverage()?; // what cannot be read at the end is better said now
    }
    let gdb = gdb.map(|server| start(args, server, &mut machine)).transpose()?;
    let control = control.map(|server| start_control(server, &mut machine)).transpose()?;
    let verdict = machine.run();
    drop((raw, control));
    machine.autopsy();
    let core = config.core.as_deref().map_or(Ok(false), |path| machine.write_core(path));
    if let Some(session) = gdb {
        session.finish();
    }
    let mut report = machine.report();
    // What cannot be written costs nothing of what can be said.
    let written = [
        core.map(drop),
        machine.whole_trace(),
        observe::write_profile(args, &machine),
        observe::write_coverage(args, &machine),
    ];
    let unwritten: Vec<_> = written.into_iter().filter_map(Result::err).collect();
    if let Some(e) = unwritten.first() {
        report.exit_code = super::code(e.refusal());
    }
    // The kernel takes the VM down with the process, faster than piece by piece.
    std::mem::forget(machine);
    Ok(Outcome { verdict, report, unwritten })
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
        super::tell(format_args!("gdb: target remote {}", server.address()));
    }
    let debugger = machine.debugger(args.gdb_wait)?;
    let doing = "start a thread for gdb".to_owned();
    server.start(debugger).map_err(|source| Error::Host { doing, source })
}

/// The control socket, as early as the debugger's.
fn open_control(args: &RunArgs) -> Result<Option<control::Server>, Error> {
    let Some(path) = &args.control else { return Ok(None) };
    let doing = format!("make the control socket {}", path.display());
    let bound = control::Server::bind(path);
    bound.map(Some).map_err(|source| Error::Host { doing, source })
}

fn start_control(
    server: control::Server,
    machine: &mut Machine,
) -> Result<control::Session, Error> {
    let remote = machine.remote()?;
    let doing = "start a thread for the control socket".to_owned();
    server.start(remote).map_err(|source| Error::Host { doing, source })
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
fn conclude(args: &RunArgs, config: Option<&Config>, outcome: &Outcome) -> u8 {
    let Outcome { verdict, report, unwritten } = outcome;
    let shows =
        if args.quiet { matches!(verdict, Verdict::Refused { .. }) } else { speaks(args, verdict) };
    if shows {
        // The guest's last line may be unfinished: a line of our own starts afresh.
        let fresh = needs_newline(config, report);
        let page = report.autopsy.as_ref().map_or(String::new(), |it| format!("ringfence: {it}"));
        let _ = writeln!(io::stderr(), "{fresh}{page}ringfence: {verdict}");
    }
    if let Some(stats) = &report.stats {
        let _ = write!(io::stderr(), "{stats}"); // a closed standard error has nobody to tell
    }
    if let Some(path) = &args.report
        && let Err(e) = write_report(path, report)
    {
        return no_report(path, &e);
    }
    unwritten.iter().for_each(|e| super::tell(format_args!("{}", chain(e))));
    if let Some(e) = unwritten.first() {
        return super::code(e.refusal());
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

fn no_report(path: &Path, e: &io::Error) -> u8 {
    super::tell(format_args!("cannot write the report {}: {e}", path.display()));
    super::code(Refusal::Host)
}

fn write_report(path: &Path, report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    write_whole(path, &text)
}

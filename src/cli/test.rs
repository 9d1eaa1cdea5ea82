//! `ringfence test`: many tests, their reports, one exit code; and `test-worker`, the process that
//! it runs them in.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU8;
use std::time::Instant;

use super::same_file::{is_same, read_for};
use super::terminal;
use super::test_args::{TestArgs, WorkerArgs};
use crate::config::is_carried;
use crate::guests;
use crate::kvm::{Backend, Kvm};
use crate::machine::{self, signals};
use crate::runner::coverage::{self, Collector};
use crate::runner::history::History;
use crate::runner::report::{GitHub, Json, Junit, Reports, Screen, Style, Tap, Totals, one_line};
use crate::runner::select::{choose, order, part};
use crate::runner::sources::{Sources, is_list};
use crate::runner::supervise::{self, Options};
use crate::runner::worker::{Hooks, NoHooks, work};
use crate::runner::{Crew, Error, How, Test, Workforce, expand};
use crate::verdict::Refusal;

/// The hidden command that makes this program a worker.
pub(super) const WORKER: &str = "test-worker";

/// Runs the command; gives back the exit code.
pub(super) fn test(args: &TestArgs) -> u8 {
    match run(args) {
        Ok(code) => code,
        Err((refusal, words)) => {
            super::tell(format_args!("{words}"));
            super::code(refusal)
        }
    }
}

/// What a command ends with that comes to nothing.
pub(super) type Refused = (Refusal, String);

pub(super) fn refused(e: &Error) -> Refused {
    let refusal = match e {
        Error::Tests { .. } => Refusal::BadConfig,
        Error::Read { .. } | Error::NoTest(_) => Refusal::NoImage,
        Error::Usage(_) => Refusal::Usage,
        Error::Host { .. } => Refusal::Host,
    };
    (refusal, machine::chain(e))
}

fn run(args: &TestArgs) -> Result<u8, Refused> {
    let host = |e: io::Error| (Refusal::Host, format!("cannot catch signals: {e}"));
    let default_jobs = if args.nocapture { 1 } else { processors() };
    let jobs = args.jobs.map_or(default_jobs, usize::from);
    let live = args.nocapture;
    let shown = if reports_to_stdout(args) > 0 { Shown::OnStderr } else { Shown::OnStdout };
    let recruit = || covering(recruit(live.then_some(shown)), args);
    let crew = Crew::new(&recruit, How { live, boot_each: args.boot_each });
    let began = Instant::now();
    let found = found(args)?;
    let budget = args.memory_budget.unwrap_or_else(free_memory);
    if args.list {
        let force = Workforce { jobs, budget, crew: &crew, signal: &NEVER };
        return list(args, found, &force);
    }
    need_kvm(&args.machine.kvm)?;
    let mut reports = reports(args, &found)?;
    let signal = signals::catch().map_err(host)?;
    let force = Workforce { jobs, budget, crew: &crew, signal };
    reports.open();
    let code = run_all(args, found, began, &force, &mut reports)
        .inspect_err(|(_, words)| reports.abandon(words))?;
    Ok(end_code(code, &reports))
}

/// Runs what is asked for; gives back the exit code, if all reports can be written.
fn run_all(
    args: &TestArgs,
    found: Vec<Test>,
    began: Instant,
    force: &Workforce<'_>,
    reports: &mut Reports,
) -> Result<u8, Refused> {
    args.coverage.as_deref().map(begin_coverage).transpose()?;
    let mut history = history_file().map_or_else(History::none, |path| History::read(&path));
    let chosen = chosen(args, found, force, reports)?;
    let others = args.shard.is_some() && chosen.iter().any(|test| test.skip.is_none());
    let tests = args.shard.map_or_else(|| chosen.clone(), |shard| part(chosen.clone(), shard));
    let rounds = if args.until_fail { args.repeat } else { Some(args.repeat.unwrap_or(1)) };
    let options = Options {
        others,
        force: Workforce { jobs: force.jobs.min(runs(tests.len(), rounds)).max(1), ..*force },
        fail_fast: args.fail_fast || args.until_fail,
        rounds,
        began,
        afterwards: &|totals| args.coverage.as_deref().and_then(|it| end_coverage(it, totals)),
    };
    note(&tests, args.verbose);
    if tests.is_empty() {
        super::tell(format_args!("this shard is empty: there are fewer tests than shards"));
    }
    let tests = order(tests, &history);
    let totals = supervise::run(&tests, &mut history, &options, reports);
    let totals = totals.map_err(|e| refused(&e))?;
    history.write();
    Ok(totals.exit_code())
}

/// How often a test runs, all tests and rounds together; rounds for ever are very many.
fn runs(tests: usize, rounds: Option<u32>) -> usize {
    tests.saturating_mul(rounds.unwrap_or(u32::MAX) as usize)
}

/// For what no signal ends but in the usual way.
pub(super) static NEVER: AtomicU8 = AtomicU8::new(0);

/// Prints the names; an image that cannot say its tests is an error.
fn list(args: &TestArgs, found: Vec<Test>, force: &Workforce<'_>) -> Result<u8, Refused> {
    let tests = chosen(args, found, force, &mut Reports::default())?;
    let tests = args.shard.map_or_else(|| tests.clone(), |shard| part(tests.clone(), shard));
    let mut out = io::stdout().lock();
    let printed = tests
        .iter()
        .filter(|test| !test.is_unlisted())
        .try_for_each(|test| writeln!(out, "{}", one_line(&test.name)));
    let unlisted: Vec<_> = tests.iter().filter(|test| test.is_unlisted()).collect();
    for test in &unlisted {
        let why = test.ended.last().map_or("", |attempt| attempt.cause.as_str());
        super::tell(format_args!("cannot list the tests of {}: {why}", one_line(&test.name)));
    }
    let code = super::printed(printed);
    Ok(if code == 0 && !unlisted.is_empty() { super::code(Refusal::BadImage) } else { code })
}

/// A worker that counts for coverage too, where that is asked for and tests run.
fn covering(mut worker: Command, args: &TestArgs) -> Command {
    let directory = args.coverage.as_ref().filter(|_| !args.list);
    worker.args(directory.iter().flat_map(|path| ["--coverage".as_ref(), path.as_os_str()]));
    worker
}

fn begin_coverage(directory: &Path) -> Result<(), Refused> {
    let failed = |e| (Refusal::Host, format!("cannot begin in {}: {e}", directory.display()));
    coverage::begin(directory).map_err(failed)
}

/// Puts the counts together. The exit code where that fails, or there are none of tests that passed.
fn end_coverage(directory: &Path, totals: &Totals) -> Option<u8> {
    match coverage::merge(directory) {
        Ok(0) => {
            super::tell(format_args!(
                "no coverage: no image that ran has an LLVM profile (see `ringfence help coverage`)"
            ));
            (totals.passed > 0).then(|| super::code(Refusal::BadImage))
        }
        Ok(_) => None,
        Err(e) => {
            super::tell(format_args!("cannot merge in {}: {e}", directory.display()));
            Some(super::code(Refusal::Host))
        }
    }
}

/// Says what of the machines is not as their tests ask.
fn note(tests: &[Test], all: bool) {
    let noted = tests.iter().filter(|test| !test.notes.is_empty() && test.skip.is_none());
    if all {
        noted.for_each(|test| {
            let (name, notes) = (one_line(&test.name), one_line(&test.notes.join(", ")));
            super::tell(format_args!("{name}: not followed: {notes}"));
        });
        return;
    }
    let count = noted.count();
    if count > 0 {
        super::tell(format_args!(
            "of {count} tests' machines not everything can be followed, such as a CPU model: guests get the host's CPUID (-v says what)"
        ));
    }
}

fn reports(args: &TestArgs, found: &[Test]) -> Result<Reports, Refused> {
    let mut reports = Reports::default();
    let to_stdout = reports_to_stdout(args);
    if to_stdout > 1 {
        let words = "only one report can go to standard output";
        return Err((Refusal::Usage, words.to_owned()));
    }
    let given: Vec<_> = report_files(args).iter().filter_map(|file| file.as_deref()).collect();
    let is_double = |(at, path): (usize, &&Path)| given[..at].iter().any(|it| is_same(it, path));
    if given.iter().enumerate().any(is_double) {
        return Err((Refusal::Usage, "two reports cannot go to one file".to_owned()));
    }
    let of_machines = found.iter().flat_map(|test| read_for(&test.machine));
    let read: BTreeSet<_> = of_machines.map(|(_, path)| path).chain(args.paths.clone()).collect();
    let is_read = |path: &&&Path| is_list(path) || read.iter().any(|it| is_same(it, path));
    if let Some(path) = given.iter().find(is_read) {
        let words = format!("{} is to be run: a report would overwrite it", path.display());
        return Err((Refusal::Usage, words));
    }
    // What people read makes way for what a machine reads.
    if to_stdout == 1 {
        let style = style(args, &io::stderr(), || terminal::width(&io::stderr()));
        reports.add(Screen::new(io::stderr(), style));
    } else {
        let style = style(args, &io::stdout(), || terminal::width(&io::stdout()));
        reports.add(Screen::new(io::stdout(), style));
    }
    if let Some(path) = &args.junit {
        let path = if is_stdout(path) { Path::new("-") } else { path };
        reports.add(Junit::new(path));
    }
    if let Some(path) = &args.tap {
        reports.add(Tap::new(path.display().to_string(), open(path)?));
    }
    if let Some(path) = &args.json {
        reports.add(Json::new(path.display().to_string(), open(path)?));
    }
    let on_github = std::env::var("GITHUB_ACTIONS").is_ok_and(|it| it == "true");
    if args.github || on_github {
        reports.add(GitHub::new(if to_stdout == 1 {
            stream(io::stderr())
        } else {
            stream(io::stdout())
        }));
    }
    Ok(reports)
}

fn report_files(args: &TestArgs) -> [&Option<PathBuf>; 3] {
    [&args.junit, &args.tap, &args.json]
}

fn reports_to_stdout(args: &TestArgs) -> usize {
    report_files(args).iter().filter_map(|file| file.as_deref()).filter(|it| is_stdout(it)).count()
}

/// `-`, and what standard output is by another name: a file, a pipe.
fn is_stdout(path: &Path) -> bool {
    let this = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let both = || Some((this.ok()?.metadata().ok()?, path.metadata().ok()?));
    let is_one = |(this, that): (Metadata, Metadata)| {
        !this.file_type().is_char_device() && (this.dev(), this.ino()) == (that.dev(), that.ino())
    };
    path == Path::new("-") || both().is_some_and(is_one)
}

fn stream(out: impl Write + 'static) -> Box<dyn Write> {
    Box::new(out)
}

/// A report's file, from the beginning; each write to it is one of the system's.
fn open(path: &Path) -> Result<Box<dyn Write>, Refused> {
    if is_stdout(path) {
        let copy = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        return copy.map(stream).map_err(|e| (Refusal::Host, format!("no standard output: {e}")));
    }
    let refused = |e| (Refusal::Host, format!("cannot write {}: {e}", path.display()));
    File::create(path).map(stream).map_err(refused)
}

/// What was typed as tests, images as one each.
fn found(args: &TestArgs) -> Result<Vec<Test>, Refused> {
    let sources = Sources {
        typed: args.machine.description().map_err(|words| (Refusal::Usage, words))?,
        backend: Backend::detect().name(),
        carried: &super::run::carried,
        expect: args.machine.expect(),
        retries: args.retries,
    };
    let unknown =
        |path: &&PathBuf| is_carried(path) && guests::find(&path.to_string_lossy()).is_none();
    if let Some(path) = args.paths.iter().find(unknown) {
        let words = format!("there is no guest {}; `ringfence guests` lists them", path.display());
        return Err((Refusal::NoImage, words));
    }
    let here = [PathBuf::from(".")];
    let paths = if args.paths.is_empty() { &here } else { args.paths.as_slice() };
    sources.tests(paths).map_err(|e| refused(&e))
}

/// The tests that are asked for, of all shards.
fn chosen(
    args: &TestArgs,
    found: Vec<Test>,
    force: &Workforce<'_>,
    reports: &mut Reports,
) -> Result<Vec<Test>, Refused> {
    let all = expanded(found, &args.machine.kvm, force, reports)?;
    choose(all, &args.filters).map_err(|e| refused(&e))
}

/// The tests, with those of images that are several; only these need KVM to be listed.
pub(super) fn expanded(
    tests: Vec<Test>,
    kvm: &Option<PathBuf>,
    force: &Workforce<'_>,
    reports: &mut Reports,
) -> Result<Vec<Test>, Refused> {
    if tests.iter().any(|test| test.mailbox && test.skip.is_none()) {
        need_kvm(kvm)?;
    }
    expand(tests, force, reports).map_err(|e| refused(&e))
}

/// A report that could not be written must not pass for one that was.
pub(super) fn end_code(code: u8, reports: &Reports) -> u8 {
    for failure in reports.failures() {
        super::tell(format_args!("{failure}"));
    }
    if code == 0 && !reports.failures().is_empty() { super::code(Refusal::Host) } else { code }
}

pub(super) fn need_kvm(path: &Option<PathBuf>) -> Result<(), Refused> {
    let path = path.as_deref().unwrap_or(Path::new("/dev/kvm"));
    let opened = Kvm::open(path).map_err(machine::Error::from);
    opened.map(drop).map_err(|e| (e.refusal(), machine::chain(&e)))
}

fn style(args: &TestArgs, out: &impl IsTerminal, width: fn() -> usize) -> Style {
    let terminal = out.is_terminal();
    Style {
        colour: terminal::takes_colour(out),
        progress: terminal::takes_escapes(out),
        passes: if terminal { args.verbose } else { !args.quiet },
        width,
    }
}

pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Three quarters of the memory that is free (proc(5), MemAvailable), in bytes.
pub(super) fn free_memory() -> u64 {
    const LITTLE: u64 = 1 << 30;
    let read = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    read().map_or(LITTLE, |kib| (kib << 10) / 4 * 3)
}

/// Where durations are remembered: the XDG base directories' place for what can be lost.
fn history_file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("ringfence").join("durations.json"))
}

/// Where guests' output is shown while they run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    OnStdout,
    /// Standard output is a report's.
    OnStderr,
}

/// A worker: this program again, out of reach of the terminal's Ctrl-C, which is the runner's.
pub(super) fn recruit(shown: Option<Shown>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORKER).process_group(0);
    if shown == Some(Shown::OnStdout)
        && let Ok(copy) = io::stdout().as_fd().try_clone_to_owned()
    {
        command.stderr(Stdio::from(copy));
    }
    command
}

/// Runs tests as the runner orders them.
pub(super) fn worker(args: &WorkerArgs) -> u8 {
    let mut hooks: Box<dyn Hooks> = match &args.coverage {
        Some(directory) => Box::new(Collector::new(directory.clone())),
        None => Box::new(NoHooks),
    };
    match work(io::stdin(), io::stdout(), &mut *hooks) {
        Ok(()) => 0,
        Err(e) => {
            super::tell(format_args!("a worker cannot go on: {e}"));
            super::code(Refusal::Host)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command as Typed};
    use super::*;

    #[test]
    fn a_list_counts_nothing_for_coverage() {
        let worker = |option: &[&str]| {
            let words = ["ringfence", "test", "--coverage", "DIR"].iter().chain(option);
            let Typed::Test(args) = Cli::try_parse_from(words).unwrap().command else { panic!() };
            covering(Command::new(WORKER), &args).get_args().count()
        };
        assert_eq!((worker(&[]), worker(&["--list"])), (2, 0));
    }

    #[test]
    fn rounds_are_runs_too() {
        assert_eq!((runs(3, Some(2)), runs(0, None)), (6, 0));
        assert!(runs(1, None) > 1000);
    }
}

//! `ringfence test-runner`: what cargo starts instead of a kernel that it has built.

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::args::{Cli, Command};
use super::test::{
    NEVER, Refused, Shown, expanded, free_memory, need_kvm, processors, recruit, refused,
};
use super::test_args::RunnerArgs;
use crate::config::Description;
use crate::kvm::Backend;
use crate::machine;
use crate::runner::report::Reports;
use crate::runner::sources::Sources;
use crate::runner::{Attempt, Crew, How, Recruit, Status, Test, Workforce};
use crate::verdict::{Refusal, Verdict};

/// libtest's exit code for tests that failed.
const FAILED: u8 = 101;

/// Runs the command; gives back the exit code.
pub(super) fn run(args: &RunnerArgs) -> u8 {
    let done = if is_test(&args.image()) { test(args) } else { plain_run(args) };
    done.unwrap_or_else(|(refusal, words)| {
        super::tell(format_args!("{words}"));
        super::code(refusal)
    })
}

/// `cargo test` runs programs with a hash of 16 digits behind their names, `cargo run` others.
fn is_test(image: &Path) -> bool {
    image.file_stem().is_some_and(|stem| unhashed(&stem.to_string_lossy()).is_some())
}

fn unhashed(stem: &str) -> Option<&str> {
    let (name, hash) = stem.rsplit_once('-')?;
    let is_hash = hash.len() == 16 && hash.bytes().all(|c| c.is_ascii_hexdigit());
    is_hash.then_some(name)
}

/// The package's own machine description.
fn described() -> Option<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")?;
    Some(Path::new(&package).join("ringfence.toml")).filter(|path| path.exists())
}

/// As `ringfence run`, with the arguments as the guest's command line.
fn plain_run(args: &RunnerArgs) -> Result<u8, Refused> {
    let mut words: Vec<OsString> = vec!["ringfence".into(), "run".into()];
    words.extend(args.machine.options_with(&args.rest()));
    if let Some(path) = described() {
        words.extend(["--config".into(), path.into()]);
    }
    words.extend(["--".into(), args.image().into()]);
    let usage = |e: clap::Error| (Refusal::Usage, e.to_string());
    match Cli::try_parse_from(words).map_err(usage)?.command {
        Command::Run(run) => Ok(super::run::run(&run)),
        _ => Ok(super::code(Refusal::Bug)), // the words are those of `run`
    }
}

/// As a program of libtest's.
fn test(args: &RunnerArgs) -> Result<u8, Refused> {
    let (filters, options) = filters(args.rest());
    let words = ["ringfence test-runner".to_owned()].into_iter().chain(options);
    let mut wanted = match Arguments::try_parse_from(words) {
        Ok(wanted) => wanted,
        // What was asked for, as --help.
        Err(e) if !e.use_stderr() => {
            return Ok(super::printed(io::stdout().write_all(e.to_string().as_bytes())));
        }
        Err(e) => return Err((Refusal::Usage, e.to_string())),
    };
    // As the standard library's test programs (`rustdoc`'s book, "test threads, capture").
    let variable = |name: &str| std::env::var(name).ok();
    wanted.nocapture |= variable("RUST_TEST_NOCAPTURE").is_some_and(|it| it != "0");
    if let (None, Some(typed)) = (wanted.test_threads, variable("RUST_TEST_THREADS")) {
        let bad = |_| (Refusal::Usage, format!("RUST_TEST_THREADS is {typed:?}, no number"));
        wanted.test_threads = Some(typed.parse().map_err(bad)?);
    }
    if wanted.test_threads == Some(0) {
        return Err((Refusal::Usage, "the number of test threads must be above 0".to_owned()));
    }
    let live = wanted.nocapture;
    let recruit: &'static Recruit<'static> =
        if live { &|| recruit(Some(Shown::OnStdout)) } else { &|| recruit(None) };
    let crew = Arc::new(Crew::new(recruit, How { live, boot_each: false }));
    let mut tests = tests(args, &crew)?;
    if !wanted.list {
        need_kvm(&args.machine.kvm)?;
    }
    if let Some(image) = tests.iter().find(|test| test.is_unlisted()) {
        let last = image.ended.last();
        // What ends by itself may be one test, and is run as that.
        let ended = last.is_some_and(|it| matches!(it.status, Status::Failed | Status::Died));
        if wanted.list && !ended {
            let why = last.map_or("", |attempt| attempt.cause.as_str());
            return Err((Refusal::BadImage, format!("cannot list the tests: {why}")));
        }
        // No choice may leave out what nobody knows.
        if !wanted.list {
            wanted = Arguments { skip: Vec::new(), ignored: false, bench: false, ..wanted };
        }
    } else if is_nextest() && wanted.exact && !tests.iter().any(|test| filters.contains(&test.name))
    {
        // It was in the list that nextest had of an earlier boot.
        let words = format!("this boot of the image has no test {}", filters.join(", "));
        super::tell(format_args!("{words}"));
        return Ok(FAILED);
    } else if let [filter] = filters.as_slice() {
        wanted.filter = Some(filter.clone());
    } else if !filters.is_empty() {
        let fits = |name: &str, filter: &String| match wanted.exact {
            true => name == filter,
            false => name.contains(filter),
        };
        tests.retain(|test| filters.iter().any(|filter| fits(&test.name, filter)));
    }
    let largest = tests.iter().map(|test| test.memory).max().unwrap_or(1).max(1);
    let room = usize::try_from(free_memory() / largest).unwrap_or(usize::MAX).max(1);
    wanted.test_threads = Some(wanted.test_threads.unwrap_or_else(processors).min(room));
    let trials = tests.into_iter().map(|test| trial(test, live, crew.clone())).collect();
    let failed = libtest_mimic::run(&wanted, trials).has_failed();
    Ok(if failed { FAILED } else { 0 })
}

/// libtest-mimic panics where it cannot print. The exit code for that: a reader that has gone is
/// SIGPIPE, as for other programs.
pub(super) fn lost_output(panic: &PanicHookInfo<'_>) -> Option<u8> {
    let by_printer = panic.location().is_some_and(|it| it.file().contains("libtest-mimic"));
    let words = panic.payload().downcast_ref::<String>();
    let words = words.filter(|words| by_printer && words.contains("Os {"))?;
    if words.contains("BrokenPipe") {
        return Some(Verdict::Signal(libc::SIGPIPE as u8).exit_code());
    }
    super::tell(format_args!("cannot write to standard output: {words}"));
    Some(super::code(Refusal::Host))
}

/// Does cargo-nextest run this (its documentation, "Environment variables")? It takes a process
/// that ends with 0 for a test that has passed, even where none has run.
fn is_nextest() -> bool {
    std::env::var_os("NEXTEST").is_some()
}

/// libtest takes any number of filters among its options; the parser of these takes one.
fn filters(args: Vec<String>) -> (Vec<String>, Vec<String>) {
    const WITH_VALUE: &[&str] =
        &["--skip", "--test-threads", "--logfile", "--format", "--color", "-Z"];
    let (mut filters, mut options) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--" => filters.extend(args.by_ref()),
            "--no-capture" => options.push("--nocapture".to_owned()),
            name if name.starts_with('-') => {
                let value = if WITH_VALUE.contains(&name) { args.next() } else { None };
                options.push(arg);
                options.extend(value);
            }
            _ => filters.push(arg),
        }
    }
    (filters, options)
}

fn tests(args: &RunnerArgs, crew: &Crew<'_>) -> Result<Vec<Test>, Refused> {
    let typed = args.machine.description();
    let mut typed = typed.map_err(|words| (Refusal::Usage, words))?;
    if let Some(path) = described() {
        let bad = |words: String| (Refusal::BadConfig, words);
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|e| bad(format!("cannot read {}: {e}", path.display())))?;
        let below = Description::parse(&text, &path).map_err(|e| bad(machine::chain(&e)))?;
        typed = typed.over(Description { image: None, ..below });
    }
    let backend = Backend::detect().name();
    let sources = Sources {
        typed,
        backend,
        carried: &super::run::carried,
        expect: args.machine.expect(),
        retries: None,
    };
    let tests = sources.tests(&[args.image()]).map_err(|e| refused(&e))?;
    let force = Workforce { jobs: 1, budget: free_memory(), crew, signal: &NEVER };
    let mut tests = expanded(tests, &args.machine.kvm, &force, &mut Reports::default())?;
    for test in &mut tests {
        // Cargo says which program it is; what its tests are called is for them to say.
        let plain = unhashed(&test.name).unwrap_or(&test.name);
        test.name = test.member.as_deref().unwrap_or(plain).to_owned();
    }
    Ok(tests)
}

fn trial(test: Test, live: bool, crew: Arc<Crew<'static>>) -> Trial {
    Trial::ignorable_test(test.name.clone(), move || {
        let ended = test.ended.last().cloned();
        outcome(ended.unwrap_or_else(|| crew.run(&test)), live)
    })
}

/// What cargo is told; what was seen `live` is not said again.
fn outcome(attempt: Attempt, live: bool) -> Result<Completion, Failed> {
    match attempt.status {
        Status::Passed => Ok(Completion::Completed),
        Status::Skipped => Ok(Completion::ignored_with(attempt.cause)),
        _ => {
            let said = match attempt.serial.trim_end() {
                "" => String::new(),
                _ if live => String::new(),
                said => format!("\n--- it said\n{said}"),
            };
            let autopsy =
                attempt.autopsy.map_or(String::new(), |it| format!("\n--- autopsy\n{it}"));
            Err(format!("{}{said}{autopsy}", attempt.cause).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_stand_among_options() {
        let words =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let args = words(&["a", "--skip", "b", "--exact", "c", "--no-capture", "--", "-d"]);
        let expected =
            (words(&["a", "c", "-d"]), words(&["--skip", "b", "--exact", "--nocapture"]));
        assert_eq!(filters(args), expected);
    }

    #[test]
    fn a_hash_tells_cargo_test_from_cargo_run() {
        assert!(is_test(Path::new(
            "target/x86_64-unknown-none/debug/deps/kernel-0123456789abcdef"
        )));
        assert!(!is_test(Path::new("target/x86_64-unknown-none/debug/kernel")));
        assert!(!is_test(Path::new("target/debug/my-kernel-with-no-hashhashhash")));
        assert_eq!(unhashed("my-kernel-0123456789abcdef"), Some("my-kernel"));
    }
}

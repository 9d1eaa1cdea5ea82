//! `cargo test`, `cargo run` and nextest of a bare-metal kernel (tests/rust-kernel) with
//! ringfence as their runner. Without cargo, or nextest, what needs it counts as ignored.

use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let cargo = has("cargo", &["--version"]);
    let nextest = cargo && has("cargo", &["nextest", "--version"]);
    for (tool, there) in [("cargo", cargo), ("cargo-nextest", nextest)] {
        if !there {
            println!("not run: {tool} is not installed");
        }
    }
    let trials = vec![
        trial("cargo_test_passes", cargo, cargo_test_passes),
        trial("cargo_test_runs_one_by_name", cargo, cargo_test_runs_one_by_name),
        trial("cargo_test_lists", cargo, cargo_test_lists),
        trial("cargo_test_tells_what_failed", cargo, cargo_test_tells_what_failed),
        trial("cargo_run_runs_the_kernel", cargo, cargo_run_runs_the_kernel),
        trial("nextest_runs_each_test", nextest, nextest_runs_each_test),
        trial("nextest_tells_what_failed", nextest, nextest_tells_what_failed),
    ];
    // They share one target directory, whose lock would make them wait for each other.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, possible: bool, run: fn() -> Result<(), Failed>) -> Trial {
    Trial::test(name, run).with_ignored_flag(!possible)
}

fn has(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// A run of cargo's.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    out: String,
    err: String,
}

/// Seconds for one: in a rig the compiler takes a minute.
const LIMIT: &str = "600";

/// Cargo in the kernel's directory, with ringfence on the path.
fn cargo(words: &str) -> Ended {
    let kernel = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/rust-kernel");
    let own = PathBuf::from(env!("CARGO_BIN_EXE_ringfence")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [own].into_iter().chain(std::env::split_paths(&path));
    let mut command = Command::new("timeout");
    command.args([LIMIT, "cargo"]).args(words.split_whitespace()).current_dir(kernel);
    command.env("PATH", std::env::join_paths(path).unwrap());
    command.env("CARGO_TARGET_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/rust-kernel"));
    command.env("CARGO_TERM_COLOR", "never");
    // What this test's own cargo set is not for the kernel.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    let output = command.output().expect("timeout is part of every Linux");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { status: output.status, out: text(&output.stdout), err: text(&output.stderr) }
}

/// What was expected of the exit code, and of what it said.
fn expect(ended: &Ended, code: i32, lines: &[&str]) -> Result<(), Failed> {
    let said = format!("{}\n{}", ended.out, ended.err);
    let missing: Vec<_> = lines.iter().filter(|line| !said.contains(**line)).collect();
    if ended.status.code() == Some(code) && missing.is_empty() {
        return Ok(());
    }
    Err(format!("{} instead of {code}; it did not say {missing:?}\n{said}", ended.status).into())
}

fn cargo_test_passes() -> Result<(), Failed> {
    let names = [
        "running 6 tests",
        "test pages_come_lowest_first",
        "test one_test_counts",
        "test and_the_next_starts_from_zero",
        "test result: ok. 6 passed; 0 failed; 0 ignored",
    ];
    expect(&cargo("test --offline --locked"), 0, &names)
}

fn cargo_test_runs_one_by_name() -> Result<(), Failed> {
    let ended = cargo("test --offline --locked -- --exact pages_run_out");
    expect(&ended, 0, &["running 1 test", "1 passed; 0 failed; 0 ignored; 0 measured; 5 filtered"])
}

fn cargo_test_lists() -> Result<(), Failed> {
    let ended = cargo("test --offline --locked -- --list --format terse");
    expect(&ended, 0, &["pages_run_out: test\n", "nothing_is_freed_twice: test\n"])
}

fn cargo_test_tells_what_failed() -> Result<(), Failed> {
    let ended = cargo("test --offline --locked --features failing --test failing");
    let lines = [
        "test passes                ... ok",
        "test fails                 ... FAILED",
        "test dies                  ... FAILED",
        "test passes_after_all_that ... ok",
        "panicked at tests/failing.rs:",
        "arithmetic is broken",
        "triple fault",
        "test result: FAILED. 2 passed; 2 failed",
    ];
    expect(&ended, 101, &lines)
}

fn cargo_run_runs_the_kernel() -> Result<(), Failed> {
    expect(&cargo("run --offline --locked"), 0, &["hello from a kernel in Rust\n"])
}

fn nextest_runs_each_test() -> Result<(), Failed> {
    let told = ["PASS", "rust-kernel::kernel pages_run_out", "6 tests run: 6 passed, 0 skipped"];
    expect(&cargo("nextest run --offline --locked"), 0, &told)
}

fn nextest_tells_what_failed() -> Result<(), Failed> {
    let words = "nextest run --offline --locked --no-fail-fast --features failing --test failing";
    let told = ["FAIL", "rust-kernel::failing fails", "4 tests run: 2 passed, 2 failed"];
    expect(&cargo(words), 100, &told)
}

//! Runs every row of `guests/LIST` through the binary: one test a row. A row that this
//! backend cannot run is listed with its reason and counts as ignored, not as passed.
//!
//! `RINGFENCE_TEST_SET=small` runs the rows marked small, for the slow VT-x rig.

use std::io::Write;
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use ringfence::guests::{GUESTS, Guest};
use ringfence::kvm::Backend;

fn main() -> ExitCode {
    let backend = Backend::detect().name();
    let small = std::env::var("RINGFENCE_TEST_SET").is_ok_and(|set| set == "small");
    let rows = || GUESTS.iter().filter(|guest| guest.small || !small);
    println!("backend {backend}");
    for guest in rows() {
        if let Some(reason) = guest.skip_on(backend) {
            println!("not run on {backend}: {}: {reason}", guest.name);
        }
    }
    let trial = |guest: &'static Guest| {
        Trial::test(guest.name, move || check(guest))
            .with_ignored_flag(guest.skip_on(backend).is_some())
    };
    libtest_mimic::run(&Arguments::from_args(), rows().map(trial).collect()).exit_code()
}

fn check(guest: &Guest) -> Result<(), Failed> {
    let output = run(guest).map_err(|e| format!("cannot run ringfence: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut wrong = Vec::new();
    if output.status.code() != Some(guest.verdict.into()) {
        wrong.push(format!("{} instead of exit code {}", output.status, guest.verdict));
    }
    for text in guest.says.iter().filter(|text| !said.contains(**text)) {
        wrong.push(format!("it did not say {text:?}"));
    }
    // A death is never silent; what ended well says nothing but what the guest said.
    let told = String::from_utf8_lossy(&output.stderr);
    if told.is_empty() == matches!(guest.verdict, 80..) {
        wrong.push("standard error and the verdict do not go together".to_owned());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{}\nit said:\n{said}\nringfence said:\n{told}", wrong.join("; ")).into())
}

fn run(guest: &Guest) -> std::io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args(["run", &format!("@{}", guest.name)]);
    if !guest.args.contains(&"--timeout") {
        command.args(["--timeout", &format!("{}s", guest.limit.as_secs())]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A guest may end before it has read all.
        let _ = stdin.write_all(guest.input.as_bytes());
    }
    child.wait_with_output()
}

//! What may be typed behind `ringfence test`, `test-runner` and `test-worker`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::args::checked;
use super::help;
use crate::config::{self, Config, Description};
use crate::runner::Expect;
use crate::runner::select::{Filter, Shard};

#[derive(Debug, Args)]
#[command(after_help = "See `ringfence help test` for the kinds of tests, and the exit codes.", after_long_help = help::TEST)]
pub(super) struct TestArgs {
    /// Images, directories, files of tests (.toml, .cfg), @NAME [default: the present directory]
    pub(super) paths: Vec<PathBuf>,

    /// Only tests that one of these fits (repeatable): part of a name, a glob, =NAME, tag:WORD;
    /// with ! before it, only the others
    #[arg(
        short,
        long = "filter",
        value_name = "PATTERN",
        allow_hyphen_values = true,
        help_heading = "Choose"
    )]
    pub(super) filters: Vec<Filter>,
    /// Only the I-th of N equal parts, for N machines that share the work
    #[arg(long, value_name = "I/N", help_heading = "Choose")]
    pub(super) shard: Option<Shard>,
    /// List the tests and run none
    #[arg(long, help_heading = "Choose")]
    pub(super) list: bool,

    /// How many run at a time [default: as many as there are processors]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Run")]
    pub(super) jobs: Option<u16>,
    /// RAM that all guests that run at once may have [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size, help_heading = "Run")]
    pub(super) memory_budget: Option<u64>,
    /// Start nothing more after the first test that does not pass
    #[arg(long, help_heading = "Run")]
    pub(super) fail_fast: bool,
    /// Run a test that does not pass up to N times more; one that passes then is told as flaky
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub(super) retries: Option<u32>,
    /// Run every test N times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Run")]
    pub(super) repeat: Option<u32>,
    /// Run the tests again and again until one does not pass; with --repeat N times at most
    #[arg(long, help_heading = "Run")]
    pub(super) until_fail: bool,
    /// Boot for every test, even where an image could be put back to where it was ready; each boot
    /// then announces all tests anew
    #[arg(long, help_heading = "Run")]
    pub(super) boot_each: bool,
    /// Show what guests say while they run, one at a time unless --jobs says otherwise
    #[arg(long, help_heading = "Run")]
    pub(super) nocapture: bool,
    /// Write the counters of images that were compiled for coverage to a directory, a .profraw file
    /// an image, summed over its tests; .profraw files that lie there are removed first. See
    /// `ringfence help coverage`
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub(super) coverage: Option<PathBuf>,

    #[command(flatten)]
    pub(super) machine: TestMachine,

    /// Write JUnit XML to a file, or - for standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) junit: Option<PathBuf>,
    /// Write TAP 14 to a file, or - for standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) tap: Option<PathBuf>,
    /// Write JSON lines to a file, or - for standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) json: Option<PathBuf>,
    /// Annotate a GitHub workflow with what did not pass [default: where GITHUB_ACTIONS is true]
    #[arg(long, help_heading = "Output")]
    pub(super) github: bool,
    /// Only say what did not pass, and the counts
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub(super) quiet: bool,
    /// On a terminal too, a line for each test that passed
    #[arg(short, long, help_heading = "Output")]
    pub(super) verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// As in `test`; the directory exists
    #[arg(long)]
    pub(super) coverage: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = RUNNER,
    override_usage = "ringfence test-runner [OPTIONS] IMAGE [ARG]..."
)]
pub(super) struct RunnerArgs {
    #[command(flatten)]
    pub(super) machine: TestMachine,
    /// The kernel that cargo has built. All that stands behind it is not this program's: of
    /// `cargo test` libtest's arguments, of `cargo run` more of the guest's command line
    #[arg(trailing_var_arg = true, required = true, value_name = "IMAGE")]
    words: Vec<OsString>,
}

impl RunnerArgs {
    pub(super) fn image(&self) -> PathBuf {
        self.words.first().map(PathBuf::from).unwrap_or_default()
    }

    pub(super) fn rest(&self) -> Vec<String> {
        self.words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect()
    }
}

const RUNNER: &str = "\
In .cargo/config.toml:
  [target.x86_64-unknown-none]
  runner = \"ringfence test-runner --memory 64M --timeout 10s\"

A machine description in the package's ringfence.toml counts too; what is typed goes before it. A
kernel whose tests pass with another code than 0, as with bootimage's test-success-exit-code, says so
by --success-exit-code. `cargo run` is then `ringfence run`; `cargo test` (a program that cargo has put a
hash behind the name of) prints what libtest prints, and ends with 0 or 101 as it does. nextest, which
goes by the exit code, counts a test that skips itself as passed.";

/// What goes before all that tests say of their machines.
#[derive(Debug, Args)]
pub(super) struct TestMachine {
    /// RAM of every guest
    #[arg(short, long, value_name = "SIZE", value_parser = checked(config::parse_size), help_heading = "Machines, whatever the tests say")]
    memory: Option<String>,
    /// vCPUs of every guest
    #[arg(short, long, value_name = "N", help_heading = "Machines, whatever the tests say")]
    cpus: Option<u32>,
    /// The command line of every guest
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Machines, whatever the tests say"
    )]
    cmdline: Option<String>,
    /// The time limit of every test [default: the test's own, or 60s]
    #[arg(short, long, value_name = "TIME", value_parser = checked(config::parse_limit), help_heading = "Machines, whatever the tests say")]
    timeout: Option<String>,
    /// How a test passes that says nothing of it: by the debug exit after which QEMU's exit status is
    /// this, the guest's code * 2 + 1 (bootimage's test-success-exit-code) [default: success]
    #[arg(long, value_name = "STATUS", value_parser = qemu_status, help_heading = "Machines, whatever the tests say")]
    success_exit_code: Option<u8>,
    /// KVM's device node [default: /dev/kvm]
    #[arg(long, value_name = "PATH", help_heading = "Machines, whatever the tests say")]
    pub(super) kvm: Option<PathBuf>,
}

/// An exit status that QEMU has after a debug exit.
fn qemu_status(text: &str) -> Result<u8, String> {
    let status = text.parse::<u8>().ok().filter(|status| status % 2 == 1);
    status.ok_or(format!(
        "{text:?} is no exit status of QEMU's: the guest's code * 2 + 1, as 33 for 16"
    ))
}

impl TestMachine {
    /// How a test has to end that says nothing of it.
    pub(super) fn expect(&self) -> Expect {
        self.success_exit_code.map_or(Expect::Success, Expect::QemuStatus)
    }

    /// The machine as options of `ringfence run`, with more behind the command line.
    pub(super) fn options_with(&self, more: &[String]) -> Vec<OsString> {
        let words: Vec<_> = self.cmdline.iter().chain(more).cloned().collect();
        let cmdline = Some(words.join(" ")).filter(|_| !words.is_empty());
        self.options(cmdline)
    }

    fn options(&self, cmdline: Option<String>) -> Vec<OsString> {
        let cpus = self.cpus.map(|cpus| cpus.to_string());
        let texts = [
            ("--memory", &self.memory),
            ("--cpus", &cpus),
            ("--cmdline", &cmdline),
            ("--timeout", &self.timeout),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| {
            Some([OsString::from(name), OsString::from(text.as_ref()?)])
        });
        let kvm = self.kvm.iter().map(|path| ["--kvm".into(), path.clone().into_os_string()]);
        texts.chain(kvm).flatten().collect()
    }

    /// What was typed; in words why there can be no such machine, whatever a test asks for.
    pub(super) fn description(&self) -> Result<Description, String> {
        let typed = Description {
            memory: self.memory.clone(),
            cpus: self.cpus,
            cmdline: self.cmdline.clone(),
            timeout: self.timeout.clone(),
            kvm: self.kvm.clone(),
            ..Description::default()
        };
        let image = Some(PathBuf::from("any"));
        let machine = Config::resolve(Description { image, ..typed.clone() });
        machine.map(|_| typed).map_err(|e| e.to_string())
    }
}

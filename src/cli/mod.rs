//! The command line: what was typed, made into a machine, and its verdict into words and an
//! exit code. The only module that names clap.

mod args;
mod audit;
mod audit_text;
mod control;
mod doctor;
mod dry_run;
mod guests;
mod help;
mod observe;
mod run;
mod same_file;
mod terminal;
mod test;
mod test_args;
mod test_runner;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::verdict::{Refusal, Verdict};
use args::{Cli, Command};

/// Does what the command line says; gives back the process's exit code.
pub fn main() -> ExitCode {
    catch_panics();
    crate::machine::signals::ignore_file_size();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let code = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::test(&args),
        Command::TestRunner(args) => test_runner::run(&args),
        Command::TestWorker(args) => test::worker(&args),
        Command::Guests(args) => guests::list(&args),
        Command::Doctor(args) => doctor::examine(&args),
        Command::Control(args) => control::ask(&args),
        Command::Audit(args) => audit::audit(&args),
        Command::Help { topic } => help::show(topic.as_deref()),
    };
    ExitCode::from(code)
}

/// Prints what clap has to say; help and version are no mistakes.
fn usage(error: &clap::Error) -> ExitCode {
    let shown = error.print();
    ExitCode::from(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => printed(shown),
        _ => code(Refusal::Usage), // a closed standard error has nobody to tell
    })
}

/// Says something on standard error; `eprintln!` would panic where it cannot.
fn tell(words: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "ringfence: {words}");
}

/// The exit code of a command that only prints. A reader that has seen enough is no failure.
fn printed(result: io::Result<()>) -> u8 {
    match result.and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            tell(format_args!("cannot write to standard output: {e}"));
            code(Refusal::Host)
        }
        _ => 0,
    }
}

/// The exit code of a refusal.
fn code(refusal: Refusal) -> u8 {
    Verdict::Refused { refusal, message: String::new() }.exit_code()
}

/// A panic is a bug: the terminal comes back, the message says what to do, the code is 70.
fn catch_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        if let Some(code) = test_runner::lost_output(info) {
            std::process::exit(code.into());
        }
        default(info);
        tell(format_args!("this is a bug in ringfence; please report it with the lines above"));
        std::process::exit(code(Refusal::Bug).into());
    }));
}

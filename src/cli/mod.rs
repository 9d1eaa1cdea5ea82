//! The command line: what was typed, made into a machine, and its verdict into words and an
//! exit code. The only module that names clap.

mod args;
mod dry_run;
mod guests;
mod help;
mod run;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::verdict::{Refusal, Verdict};
use args::{Cli, Command};

/// Does what the command line says; gives back the process's exit code.
pub fn main() -> ExitCode {
    catch_panics();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let code = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Guests(args) => guests::list(&args),
        Command::Help { topic } => help::show(topic.as_deref()),
    };
    ExitCode::from(code)
}

/// Prints what clap has to say; help and version are no mistakes.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print(); // a closed standard error has nobody to tell
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(code(Refusal::Usage)),
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
        default(info);
        eprintln!("ringfence: this is a bug in ringfence; please report it with the lines above");
        std::process::exit(code(Refusal::Bug).into());
    }));
}

//! Parse, build the machine, run it, exit with its verdict; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringfence::cli::main()
}

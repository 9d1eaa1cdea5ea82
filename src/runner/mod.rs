//! The test runner: many machines, their verdicts, reports. Called by `cli`; speaks to
//! `machine` only, and knows no command line.
//!
//! * [`sources`] finds [`Test`]s: images, directories, `ringfence-tests.toml`, `unittests.cfg`.
//! * [`expand`] boots the images that are several tests up to where they are ready, and asks them.
//! * [`select`] keeps those that are asked for, and puts the longest first ([`history`]).
//! * [`supervise`] hands them to worker processes, one a core. A worker ([`worker`]) runs one machine
//!   after another in its own process: a VM costs less than a process, and a worker that
//!   crashes takes no other test with it.
//! * [`report`] tells people and machines what became of them.
//!
//! Workers read orders from their standard input and end when it does: whatever kills the
//! runner, nobody is left behind.

pub mod coverage;
mod crew;
mod expand;
pub mod history;
mod lead;
pub mod outcome;
mod protocol;
mod queue;
pub mod report;
pub mod select;
pub mod sources;
pub mod supervise;
mod test;
pub mod worker;

pub use crew::{Crew, Recruit};
pub use expand::expand;
pub use lead::Workforce;
pub use outcome::{Attempt, Record, Status};
pub use protocol::How;
use protocol::send;
pub use test::{Expect, Test};

/// What is wrong with what the runner was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of tests is not what it should be.
    #[error("the tests of {path} are not understood: {reason}")]
    Tests {
        /// The file.
        path: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// A path that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The path.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is nothing to run.
    #[error("{0}")]
    NoTest(String),
    /// A value that was typed.
    #[error("{0}")]
    Usage(String),
    /// The host refused a process or a thread.
    #[error("cannot {doing}: {source}")]
    Host {
        /// What was tried.
        doing: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

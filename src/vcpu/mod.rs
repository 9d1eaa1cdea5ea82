//! vCPUs at work: the run loop, the requests that reach it, the threads.
//!
//! Called by `machine` and `audit`; knows KVM's exits and the bus, no device and no machine.

mod control;
mod counts;
mod halt;
mod kick;
mod limited;
mod park;
mod recorder;
mod run;
mod step;
mod strict;
mod thread;

pub use control::{Control, Watch};
pub use counts::{Counts, Unclaimed, UnclaimedKind};
pub use halt::{HaltWatch, Ticks};
pub use kick::kick_self as interrupt_self;
pub use limited::{Limited, limited};
pub use park::{Hunt, News, Parking, Standing, Stop, Why};
pub use recorder::{Observer, Record, Recorder};
pub use run::{HypercallDevice, RunLoop};
pub use step::{Companion, OUT, Stepped, run_to_exit, step_to_end};
pub use strict::{Blocked, Guards, Still, Strict, Violation};
pub use thread::{ENDING, block_process_signals, run_all};

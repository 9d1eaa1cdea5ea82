//! What a run can tell of itself: traces, statistics and profiles of the guest's exits.
//!
//! Called by `machine`, which says what is wanted and gives each vCPU its [`Instruments`]'
//! observer; knows KVM's exits and guest memory, no device and no machine.

mod culprit;
mod filter;
mod instruments;
mod naming;
mod profile;
mod stats;
mod table;
#[cfg(test)]
pub(crate) mod testing;
mod trace;

pub use culprit::culprit;
pub use filter::Filter;
pub use instruments::{Instruments, Wanted};
pub use profile::PERIOD as PROFILE_PERIOD;
pub use stats::{FunctionLine, Kernel, KindLine, PlaceLine, Statistics};
pub use trace::{Format, TraceStyle};

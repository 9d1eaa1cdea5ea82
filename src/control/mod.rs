//! How a running machine is looked at and steered from outside: the debugger, the control
//! socket.
//!
//! Called by the command line, or by whoever uses ringfence as a library; speaks to
//! [`crate::machine`] only.

pub mod client;
pub mod gdb;
pub mod protocol;
mod socket;
mod unix;

pub use socket::{Server, Session};

//! How a running machine is looked at and steered from outside: the debugger.
//!
//! Called by the command line, or by whoever uses ringfence as a library; speaks to
//! [`crate::machine`] only.

pub mod gdb;

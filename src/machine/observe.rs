//! What of a run is watched, as a machine is asked for it.

use std::fs::File;
use std::sync::Arc;

use super::output::HostOutput;
use crate::inspect::Functions;
use crate::inspect::watch::{Instruments, TraceStyle, Wanted};
use crate::vcpu::Control;

/// What of a run is watched; nothing unless asked for.
#[derive(Default)]
pub struct Observe {
    /// Every exit as a line.
    pub trace: Option<TraceOutput>,
    /// Statistics, for the report.
    pub stats: bool,
    /// A profile, for [`super::Machine::profile`].
    pub profile: bool,
}

/// Where a trace goes, and how it is written.
pub struct TraceOutput {
    /// What it is called, for errors.
    pub name: String,
    /// The file, pipe or terminal.
    pub file: File,
    /// How it is written.
    pub style: TraceStyle,
}

impl Observe {
    pub(super) fn instruments(
        self,
        functions: impl FnOnce() -> Functions,
        control: &Arc<Control>,
    ) -> Instruments {
        let output = |trace: TraceOutput| {
            let out = HostOutput::new(trace.file, control.clone());
            (trace.name, Box::new(out) as Box<dyn std::io::Write + Send>, trace.style)
        };
        let wanted =
            Wanted { trace: self.trace.map(output), stats: self.stats, profile: self.profile };
        Instruments::new(wanted, functions, control.clone())
    }
}

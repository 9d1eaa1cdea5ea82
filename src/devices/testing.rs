//! The outside of a device, for the unit tests of this folder.

use std::sync::{Arc, Mutex};

use super::Console;
use crate::verdict::{StopLine, Verdict};

/// A stop line that remembers.
#[derive(Default)]
pub struct Stops(Mutex<Vec<Verdict>>);

impl Stops {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What has been asked for since the last call.
    pub fn take(&self) -> Vec<Verdict> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl StopLine for Stops {
    fn stop(&self, verdict: Verdict) {
        self.0.lock().unwrap().push(verdict);
    }
}

/// A console that captures everything.
pub fn console() -> Arc<Console> {
    Console::builder(Stops::new()).capture(1 << 20).build()
}

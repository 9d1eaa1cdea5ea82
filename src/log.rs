//! Diagnostics on standard error: what -v shows.

use std::io::Write;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // A closed standard error is no reason to end a guest.
        let _ = writeln!(std::io::stderr(), "ringfence: {}", record.args());
    }

    fn flush(&self) {}
}

/// Shows records up to `level` on standard error. The first call in a process counts.
pub fn show(level: log::LevelFilter) {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

//! What is particular to a Linux guest: the command line it gets when none was given, and
//! the panic that it can only tell its console.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::devices::Console;
use crate::vcpu::Watch;
use crate::verdict::{Death, Verdict};

/// Its console on COM1, and a reset when it panics: without `panic=` it would loop for ever.
pub(super) const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// The line that begins a panic (Linux, kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";
/// The line after which a kernel that does not reset itself loops for ever.
const PANIC_END: &str = "---[ end Kernel panic";

/// Reads a panic that is over from the console: Linux has a driver for pvpanic, but as a
/// module that a kernel which finds no root never loads.
pub(super) fn watch(console: Arc<Console>) -> Watch {
    let seen = AtomicU64::new(0);
    Box::new(move || {
        let total = console.total();
        if seen.swap(total, Ordering::Relaxed) == total {
            return None;
        }
        let tail = String::from_utf8_lossy(&console.last_words()).into_owned();
        if tail.contains(PANIC_END) { panic_in(&tail) } else { None }
    })
}

/// The panic that a console's last output tells of.
pub(super) fn panic_in(tail: &str) -> Option<Verdict> {
    let line = tail.lines().rev().find(|line| line.contains(PANIC) && !line.contains(PANIC_END))?;
    let words = line.split_once(PANIC)?.1.trim_start_matches(':').trim();
    Some(Verdict::died(Death::Panic, format!("(Linux: {words})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_quoted() {
        let tail = "[ 1.0] VFS: no root\n[ 1.1] Kernel panic - not syncing: VFS: Unable to mount root fs\n[ 1.2] CPU: 0\n";
        let verdict = panic_in(tail).unwrap();
        assert_eq!(verdict.exit_code(), 82);
        assert!(verdict.to_string().ends_with("(Linux: VFS: Unable to mount root fs)"));
        assert_eq!(panic_in("all is well\n"), None);
    }
}

//! The signals that ask a process to end: they end the machine, so that the terminal is
//! restored and the report written.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::signal::register_signal_handler;

use crate::vcpu;

/// The signal that came; 0: none.
static CAUGHT: AtomicU8 = AtomicU8::new(0);

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    CAUGHT.store(signal as u8, Ordering::SeqCst);
    vcpu::interrupt_self();
}

/// Catches them from now on, for the whole process. Call it on the thread that will run the
/// machine: it is the one that takes them. One that is ignored (as `nohup` does with SIGHUP)
/// stays ignored.
pub fn catch() -> io::Result<&'static AtomicU8> {
    for signal in vcpu::ENDING {
        if !ignored(signal) {
            register_signal_handler(signal, on_signal)?;
        }
    }
    Ok(&CAUGHT)
}

/// Has a write beyond the limit for a file's size (`ulimit -f`) fail, which is then said, instead
/// of ending the process.
pub fn ignore_file_size() {
    // SAFETY: an ignored signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// For threads that are no vCPU's: leaves those signals to the thread that runs the machine.
pub fn block() {
    vcpu::block_process_signals();
}

fn ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zero is a valid sigaction; with no new action the call only fills it in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

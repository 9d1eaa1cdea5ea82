//! Getting a thread out of KVM_RUN, without a race.
//!
//! The kicker stores its request, then signals the thread. The handler writes
//! `immediate_exit = 1` through a thread-local pointer, so that a signal that lands just
//! before KVM_RUN still makes it return EINTR. The loop clears the flag first and reads the
//! requests after that.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `immediate_exit` of the vCPU that this thread runs; null where it runs none.
    /// Const, without a destructor: a signal handler may use it.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// The signal that kicks: the first real-time signal that libc leaves to programs.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    kick_self();
}

/// Makes the calling thread's next KVM_RUN only finish what is half done; does nothing on a
/// thread without a vCPU. Safe in a signal handler.
pub fn kick_self() {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Target` sets the pointer, to a byte that outlives it, and clears it when
        // it goes.
        unsafe { &*flag }.store(1, Ordering::SeqCst);
    }
}

/// The calling thread as a target of kicks, for as long as this lives.
pub(super) struct Target(());

impl Target {
    /// # Safety
    /// `immediate_exit` stays valid for as long as the result lives, and the result is
    /// dropped on this thread.
    pub(super) unsafe fn new(immediate_exit: *const AtomicU8) -> io::Result<Self> {
        static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
        let install = || register_signal_handler(kick_signal(), on_kick).map_err(|e| e.errno());
        INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)?;
        IMMEDIATE_EXIT.set(immediate_exit);
        Ok(Self(()))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}

/// A thread that can be kicked from another one, for as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Thread(libc::pthread_t);

impl Thread {
    pub(super) fn current() -> Self {
        // SAFETY: has no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// # Safety
    /// The thread has not ended.
    pub(super) unsafe fn kick(self) {
        // SAFETY: the thread lives, says the caller.
        unsafe { libc::pthread_kill(self.0, kick_signal()) };
    }
}

/// A timer that kicks the thread that started it.
pub(super) struct Ticker(libc::timer_t);

// SAFETY: a timer belongs to the process: any thread may set and delete it (timer_create(2)).
unsafe impl Send for Ticker {}

impl Ticker {
    /// Kicks first after `first`, then every `period`; never again where that is zero.
    pub(super) fn start(first: Duration, period: Duration) -> io::Result<Self> {
        // SAFETY: all zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick_signal();
        // SAFETY: has no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to locals that outlive the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let ticker = Self(timer);
        ticker.set(first, period)?;
        Ok(ticker)
    }

    /// Starts again from now.
    pub(super) fn set(&self, first: Duration, period: Duration) -> io::Result<()> {
        // A first time of zero would disarm it.
        let first = first.max(Duration::from_nanos(1));
        let times = libc::itimerspec { it_value: spec(first), it_interval: spec(period) };
        // SAFETY: the timer exists, `times` outlives the call, the old times are not asked for.
        match unsafe { libc::timer_settime(self.0, 0, &times, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `start`, and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

fn spec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_sets_the_flag_of_its_own_thread() {
        let flag = AtomicU8::new(0);
        // SAFETY: `flag` outlives `_target`, which is dropped on this thread.
        let _target = unsafe { Target::new(&flag) }.unwrap();
        let _ticker = Ticker::start(Duration::ZERO, Duration::from_millis(1)).unwrap();
        while flag.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1)); // ends early, by the signal
        }
    }

    #[test]
    fn without_a_target_a_kick_is_harmless() {
        kick_self();
    }
}

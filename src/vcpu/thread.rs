//! The threads that vCPUs run on: the first one on the caller's, each other on its own.

use std::io;
use std::sync::Arc;
use std::thread;

use super::control::Control;
use super::counts::Counts;
use super::kick::{Target, Thread, Ticker};
use super::run::RunLoop;
use crate::verdict::{Refusal, StopLine, Verdict};

/// Runs all vCPUs until the machine ends; gives them back as they stand, with what they
/// counted together. The first runs on the calling thread: a thread costs start-up time, and
/// a machine with one vCPU needs none.
pub fn run_all(loops: &mut [RunLoop], control: &Arc<Control>) -> Counts {
    let mut total = Counts::default();
    if let Some(parking) = control.parking() {
        parking.begin(loops.len());
    }
    let Some((first, others)) = loops.split_first_mut() else { return total };
    thread::scope(|scope| {
        let others: Vec<_> = others.iter_mut().map(|it| start(scope, it, control)).collect();
        match drive(first, RunLoop::run) {
            Ok(counts) => total.add(&counts.unwrap_or_default()),
            Err(e) => control.stop(refused(&e)),
        }
        for other in others.into_iter().flatten() {
            match other.join() {
                Ok(counts) => total.add(&counts),
                Err(_) => control.stop(bug()),
            }
        }
    });
    total
}

fn start<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    it: &'scope mut RunLoop,
    control: &Arc<Control>,
) -> Option<thread::ScopedJoinHandle<'scope, Counts>> {
    let builder = thread::Builder::new().name(format!("vcpu{}", it.vcpu.id()));
    let stop = control.clone();
    let spawned = builder.spawn_scoped(scope, move || {
        block_process_signals();
        let counts = drive(it, RunLoop::run).unwrap_or_else(|e| {
            stop.stop(refused(&e));
            None
        });
        counts.unwrap_or_default()
    });
    spawned.map_err(|e| control.stop(refused(&e))).ok()
}

/// What a user, a shell or a CI runner ends a process with.
pub const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals to the process are the first thread's to take: it looks at them when it is
/// interrupted, a vCPU thread would swallow them.
pub fn block_process_signals() {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ENDING {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Ends the machine when a vCPU's thread goes, in whatever way: no other is left waiting.
struct Entered<'c> {
    control: &'c Control,
    id: u32,
    thread: Thread,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.control.leave(self.id, self.thread);
        if thread::panicking() {
            self.control.stop(bug());
        }
    }
}

/// Does `work` with a vCPU on this thread, which can be kicked meanwhile; `None` where the
/// machine had ended before.
pub(super) fn drive<R>(
    it: &mut RunLoop,
    work: impl FnOnce(&mut RunLoop) -> R,
) -> io::Result<Option<R>> {
    let control = it.control.clone();
    // SAFETY: the byte lies in the vCPU's mapping; `it` outlives `_target`, which is dropped
    // at the end of this function, on this thread.
    let _target = unsafe { Target::new(it.vcpu.immediate_exit()) }?;
    let (id, thread) = (it.vcpu.id(), Thread::current());
    control.enter(id, thread);
    let _entered = Entered { control: &control, id, thread };
    it.ticks.ticker = ticker(it)?;
    // What was asked before this thread could be kicked is seen here.
    let done = if control.should_stop() { None } else { Some(work(it)) };
    it.ticks.ticker = None;
    Ok(done)
}

/// Ticks for the clock (the first vCPU looks at it), the watches and samples (all do).
fn ticker(it: &RunLoop) -> io::Result<Option<Ticker>> {
    let left = it.control.time_left().filter(|_| it.vcpu.id() == 0);
    let times = it.ticks.times(it.is_watched(), left);
    times.map(|(first, period)| Ticker::start(first, period)).transpose()
}

fn refused(e: &io::Error) -> Verdict {
    let message = format!("the host refused a vCPU its thread, signal or timer: {e}");
    Verdict::Refused { refusal: Refusal::Host, message }
}

fn bug() -> Verdict {
    let message = "a vCPU's thread panicked; this is a bug in ringfence".to_owned();
    Verdict::Refused { refusal: Refusal::Bug, message }
}

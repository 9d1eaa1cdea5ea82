//! A hold on a machine that runs: what it does, what its exits went into, its end.
//!
//! Called by the control socket, on a thread of its own; knows no protocol. What is counted on
//! a vCPU's thread is asked for there: the vCPU comes out of the guest for it, and goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::poll::poll;
use super::present::Present;
use super::report::{ImageReport, UnclaimedReport};
use super::{Error, Machine, names, platform};
use crate::inspect::watch::{Instruments, Kernel};
use crate::kvm::{Backend, RunState, Stat};
use crate::vcpu::{Control, Counts, News, Parking, Standing};
use crate::verdict::Verdict;

pub use crate::inspect::watch::Statistics;

/// How long a vCPU may take to come out of the guest: it does in microseconds, unless its
/// output waits for somebody to read it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often to look whether they do, should nobody say so, in milliseconds.
const LOOK: libc::c_int = 50;

/// A hold on a machine that runs; [`Machine::remote`] gives it.
pub struct Remote {
    control: Arc<Control>,
    instruments: Arc<Instruments>,
    present: Arc<Present>,
    began: Instant,
    machine: About,
    /// A debugger pauses and resumes by itself.
    debugged: bool,
    paused: AtomicBool,
}

/// What a machine is.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Version of ringfence.
    pub ringfence: &'static str,
    /// The process that runs it.
    pub pid: u32,
    /// What runs.
    pub image: ImageReport,
    /// The kind of KVM: the kernel module's name.
    pub backend: &'static str,
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The time limit, in seconds from the start.
    pub timeout_seconds: Option<f64>,
}

/// What a machine does.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// running, paused or ended.
    pub state: &'static str,
    /// Seconds since it was built.
    pub wall_seconds: f64,
    /// Starts after a reset of the guest's.
    pub restarts: u64,
    /// What it is.
    #[serde(flatten)]
    pub machine: About,
    /// What each vCPU does.
    pub vcpus: Vec<VcpuStatus>,
}

/// What a vCPU does.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuStatus {
    /// running, stopped (in the debugger, or paused), halted, halted-for-ever (or not started yet
    /// by another vCPU), no-answer.
    pub state: &'static str,
    /// Where its next instruction is, a linear address.
    pub rip: Option<u64>,
    /// The function there, and how far into it.
    pub function: Option<String>,
}

/// What the exits went into so far.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Seconds since the machine was built.
    pub wall_seconds: f64,
    /// Exits by kind, since then.
    pub exits: BTreeMap<&'static str, u64>,
    /// Accesses that nothing claimed, since then.
    pub unclaimed: UnclaimedReport,
    /// How long `stats` has been counted: since the machine was built, or since it was first
    /// asked for.
    pub counted_seconds: f64,
    /// Has it been counted since the machine was built?
    pub from_start: bool,
    /// What the exits of that time went into, and KVM's own counters since the start.
    pub stats: Statistics,
    /// vCPUs that did not answer, and are missing here.
    pub silent: Vec<usize>,
}

/// What one vCPU answers.
struct Answer {
    counts: Counts,
    kernel: Vec<Stat>,
}

impl Machine {
    /// Gives a hold on this machine, before it runs. A debugger comes first, if there is to be
    /// one.
    ///
    /// # Errors
    /// The host has no event for it.
    pub fn remote(&mut self) -> Result<Remote, Error> {
        let restarts = self.config.on_reset == super::OnReset::Restart;
        self.control.set_parking(false, restarts).map_err(|source| Error::Host {
            doing: "make an event for the control socket".to_owned(),
            source,
        })?;
        let names = || names::functions(&self.config, &self.files.image, &self.loaded);
        self.instruments.name_functions(names);
        let loaded = &self.loaded;
        let image = ImageReport {
            path: self.config.image.display().to_string(),
            protocol: Some(loaded.protocol.name().to_owned()),
            description: Some(loaded.description.clone()),
        };
        Ok(Remote {
            machine: About {
                ringfence: env!("CARGO_PKG_VERSION"),
                pid: std::process::id(),
                image,
                backend: Backend::detect().name(),
                memory: self.config.memory,
                cpus: self.config.cpus,
                timeout_seconds: self.config.timeout.map(|limit| limit.as_secs_f64()),
            },
            control: self.control.clone(),
            instruments: self.instruments.clone(),
            present: self.share(),
            began: self.began,
            debugged: self.debugged,
            paused: AtomicBool::new(false),
        })
    }
}

impl Remote {
    /// What the machine does.
    pub fn status(&self) -> Status {
        let answers = self.control.ask_all(PATIENCE, |it| {
            Some((it.vcpu.state().ok()?.linear_rip(), it.vcpu.run_state().ok()?, it.parked))
        });
        let vcpu = |answer: Option<Option<(u64, RunState, bool)>>| {
            let Some((rip, state, parked)) = answer.flatten() else {
                return VcpuStatus { state: "no-answer", rip: None, function: None };
            };
            let state = match state {
                RunState::Runnable if parked => "stopped",
                RunState::Runnable => "running",
                RunState::Halted => "halted",
                RunState::HaltedForEver => "halted-for-ever",
            };
            VcpuStatus { state, rip: Some(rip), function: self.instruments.function_at(rip) }
        };
        let state = match self.control.verdict() {
            Some(_) => "ended",
            None if self.paused.load(Ordering::SeqCst) => "paused",
            None => "running",
        };
        Status {
            state,
            wall_seconds: self.began.elapsed().as_secs_f64(),
            restarts: self.present.lock().restarts,
            machine: self.machine.clone(),
            vcpus: answers.into_iter().map(vcpu).collect(),
        }
    }

    /// What the exits went into so far. Places, functions and times are counted from the
    /// first call on, unless the machine was built to count them from the start.
    pub fn figures(&self) -> Figures {
        self.instruments.count();
        let restarts = || self.present.lock().restarts;
        // What is asked of one start of the guest is not to be added to what another counted.
        let before = restarts();
        let figures = self.figures_once();
        if restarts() == before { figures } else { self.figures_once() }
    }

    fn figures_once(&self) -> Figures {
        let (memory, vm, mut counts) = {
            let present = self.present.lock();
            (present.memory.clone(), present.vm.clone(), present.counts.clone())
        };
        let instruments = self.instruments.clone();
        let answers = self.control.ask_all(PATIENCE, move |it: &mut Standing<'_>| {
            match &mut *it.observer {
                Some(observer) => observer.publish(),
                none => *none = instruments.observer(it.vcpu.id(), &memory),
            }
            Answer { counts: it.counts.clone(), kernel: it.vcpu.stats() }
        });
        answers.iter().flatten().for_each(|answer| counts.add(&answer.counts));
        let silent = (0..answers.len()).filter(|id| answers[*id].is_none()).collect();
        let vcpus = answers.into_iter().map(|answer| answer.map(|it| it.kernel));
        let kernel = Kernel::new(vm.stats(), vcpus.map(Option::unwrap_or_default).collect());
        let stats = self.instruments.statistics(|| kernel, platform::port_name);
        Figures {
            wall_seconds: self.began.elapsed().as_secs_f64(),
            exits: counts.exits().collect(),
            unclaimed: UnclaimedReport::new(&counts),
            counted_seconds: self.instruments.counting().unwrap_or_default().as_secs_f64(),
            from_start: self.instruments.counts_from_start(),
            stats: stats.unwrap_or_default(),
            silent,
        }
    }

    /// Ends the machine, with the verdict of SIGTERM.
    pub fn stop(&self) {
        self.control.order(Verdict::Signal(libc::SIGTERM as u8));
    }

    /// Has all vCPUs stand still, and waits until they do. The time limit and the guest's
    /// clocks go on.
    ///
    /// # Errors
    /// Why they do not, in words.
    pub fn pause(&self) -> Result<(), &'static str> {
        let parking = self.parking()?;
        if self.paused.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.control.pause();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match parking.news() {
                Some(News::Stopped(_)) => {
                    self.paused.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                Some(News::Ended(_)) => return Err("the machine has ended"),
                None => drop(poll([(parking.news_fd(), libc::POLLIN)], LOOK)),
            }
        }
        parking.release(|_| true);
        Err("a vCPU does not stop: does its output wait for somebody to read it?")
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn resume(&self) -> Result<(), &'static str> {
        let parking = self.parking()?;
        if self.paused.swap(false, Ordering::SeqCst) {
            parking.release(|_| true);
        }
        Ok(())
    }

    fn parking(&self) -> Result<&Parking, &'static str> {
        if self.debugged {
            return Err("the machine has a debugger (--gdb), which pauses and resumes it");
        }
        self.control.parking().ok_or("the machine cannot be paused")
    }
}

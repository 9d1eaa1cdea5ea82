//! What is watched during a run, and the observer of each vCPU that watches it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Kernel;
use super::profile::{self, Samples};
use super::stats::{Counters, Statistics};
use super::trace::{Sink, TraceStyle, Tracer};
use crate::inspect::Functions;
use crate::kvm::{RunState, Vcpu};
use crate::mem::GuestMemory;
use crate::vcpu::{Observer, Record};
use crate::verdict::StopLine;

/// What is to be watched.
#[derive(Default)]
pub struct Wanted {
    /// Every exit as a line: where the lines go, what that is called, how they are written.
    pub trace: Option<(String, Box<dyn Write + Send>, TraceStyle)>,
    /// Statistics.
    pub stats: bool,
    /// A profile.
    pub profile: bool,
}

/// What is watched, and what was seen by all vCPUs when they last handed it in.
#[derive(Default)]
pub struct Instruments {
    functions: OnceLock<Arc<Functions>>,
    began: Option<Instant>,
    trace: Option<Arc<Sink>>,
    counting: Arc<OnceLock<Counting>>,
    /// Samples by the number of the vCPU.
    profile: Option<Arc<Mutex<BTreeMap<u32, Samples>>>>,
}

/// Statistics, from the start or from the time that they were asked for.
struct Counting {
    since: Instant,
    from_start: bool,
    all: Mutex<Counters>,
}

impl Counting {
    fn new(from_start: bool) -> Self {
        Self { since: Instant::now(), from_start, all: Mutex::new(Counters::new()) }
    }
}

impl Instruments {
    /// Makes ready what is wanted; `functions` is asked for only where names are needed.
    pub fn new(
        wanted: Wanted,
        functions: impl FnOnce() -> Functions,
        stop: Arc<dyn StopLine>,
    ) -> Self {
        if wanted.trace.is_none() && !wanted.stats && !wanted.profile {
            return Self::default();
        }
        let sink = |(name, out, style)| Arc::new(Sink::new(name, out, style, stop));
        let counting = OnceLock::new();
        if wanted.stats {
            counting.get_or_init(|| Counting::new(true));
        }
        Self {
            functions: Arc::new(functions()).into(),
            began: Some(Instant::now()),
            trace: wanted.trace.map(sink),
            counting: Arc::new(counting),
            profile: wanted.profile.then(Arc::default),
        }
    }

    /// Gives the functions' names, where nothing needed them so far.
    pub fn name_functions(&self, functions: impl FnOnce() -> Functions) {
        self.functions.get_or_init(|| Arc::new(functions()));
    }

    /// The function that `address` is in, and how far into it.
    pub fn function_at(&self, address: u64) -> Option<String> {
        self.functions().name_of(address).map(|_| self.functions().describe(address))
    }

    fn functions(&self) -> &Arc<Functions> {
        self.functions.get_or_init(Arc::default)
    }

    /// The observer for vCPU `id`; `None` where nothing is watched.
    pub fn observer(&self, id: u32, memory: &GuestMemory) -> Option<Box<dyn Observer>> {
        let counting = self.counting.get();
        let began = self.began.or(counting.map(|it| it.since))?;
        let tracer = |sink: &Arc<Sink>| Tracer::new(sink.clone(), self.functions().clone(), id);
        let sampler = |all: &Arc<Mutex<BTreeMap<u32, Samples>>>| Sampler {
            id,
            samples: Samples::default(),
            memory: memory.clone(),
            functions: self.functions().clone(),
            all: all.clone(),
        };
        Some(Box::new(Watch {
            began,
            clock: counting.is_some() || self.trace.as_ref().is_some_and(|it| it.wants_time()),
            exit: began,
            trace: self.trace.as_ref().map(tracer),
            counters: counting.map(|_| Counters::new()),
            counting: self.counting.clone(),
            profile: self.profile.as_ref().map(sampler),
        }))
    }

    /// How often the observers want a tick.
    pub fn sampling(&self) -> Option<Duration> {
        self.profile.as_ref().map(|_| profile::PERIOD)
    }

    /// Counts from now on, if nothing was counted yet. Each vCPU's observer takes it up when
    /// it next hands in what it has seen; one without an observer is to be given one.
    pub fn count(&self) {
        self.counting.get_or_init(|| Counting::new(false));
    }

    /// For how long it has been counted, where it is.
    pub fn counting(&self) -> Option<Duration> {
        self.counting.get().map(|it| it.since.elapsed())
    }

    /// Was it counted from the start?
    pub fn counts_from_start(&self) -> bool {
        self.counting.get().is_some_and(|it| it.from_start)
    }

    /// The statistics, if any were counted; `kernel` asks for KVM's own. `device` names what
    /// claims a port.
    pub fn statistics(
        &self,
        kernel: impl FnOnce() -> Kernel,
        device: impl Fn(u64) -> Option<&'static str>,
    ) -> Option<Statistics> {
        let counters = lock(&self.counting.get()?.all);
        let statistics = counters.report(self.functions(), device);
        Some(Statistics { kernel: kernel(), ..statistics })
    }

    /// The trace's name, and why not all of it was written; once.
    pub fn trace_failure(&self) -> Option<(String, io::Error)> {
        self.trace.as_ref()?.failure()
    }

    /// The profile as folded lines.
    pub fn folded(&self) -> Option<String> {
        let mut folded = String::new();
        for (id, samples) in lock(self.profile.as_deref()?).iter() {
            samples.fold(self.functions(), *id, &mut folded);
        }
        Some(folded)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one vCPU's exits are watched for.
struct Watch {
    began: Instant,
    /// Is the time asked for? Reading it costs more than the rest of an exit.
    clock: bool,
    /// When the present exit came.
    exit: Instant,
    trace: Option<Tracer>,
    /// This vCPU's, since they were last handed in.
    counters: Option<Counters>,
    counting: Arc<OnceLock<Counting>>,
    profile: Option<Sampler>,
}

impl Observer for Watch {
    fn begin(&mut self) -> u64 {
        if !self.clock {
            return 0;
        }
        self.exit = Instant::now();
        nanoseconds(self.exit - self.began)
    }

    fn end(&mut self, record: &Record) {
        if let Some(counters) = &mut self.counters {
            counters.exit(record, nanoseconds(self.exit.elapsed()));
        }
        if let Some(trace) = &mut self.trace {
            trace.exit(record);
        }
    }

    fn tick(&mut self, vcpu: &mut Vcpu) {
        if let Some(profile) = &mut self.profile {
            profile.take(vcpu);
        }
    }

    fn publish(&mut self) {
        if let Some(counting) = self.counting.get() {
            match self.counters.replace(Counters::new()) {
                Some(counters) => lock(&counting.all).merge(counters),
                None => self.clock = true,
            }
        }
        if let Some(trace) = &mut self.trace {
            trace.flush();
        }
        if let Some(profile) = &mut self.profile {
            let samples = std::mem::take(&mut profile.samples);
            lock(&profile.all).entry(profile.id).or_default().merge(samples);
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Takes the samples of one vCPU.
struct Sampler {
    id: u32,
    samples: Samples,
    memory: GuestMemory,
    functions: Arc<Functions>,
    all: Arc<Mutex<BTreeMap<u32, Samples>>>,
}

impl Sampler {
    fn take(&mut self, vcpu: &mut Vcpu) {
        // A vCPU whose registers cannot be had is missed once; its thread will hear of it.
        if vcpu.run_state().is_ok_and(|state| state != RunState::Runnable) {
            self.samples.take_idle();
        } else if let Ok(state) = vcpu.state() {
            self.samples.take(&self.functions, &self.memory, &state);
        }
    }
}

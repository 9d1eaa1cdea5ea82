//! What is watched during a run, and the observer of each vCPU that watches it.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::profile::{self, Samples};
use super::stats::{Counters, Statistics};
use super::trace::{Sink, TraceStyle, Tracer};
use super::{Functions, Kernel};
use crate::kvm::Vcpu;
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

/// What is watched, and what was seen by all vCPUs that run no more.
#[derive(Default)]
pub struct Instruments {
    functions: Arc<Functions>,
    began: Option<Instant>,
    trace: Option<Arc<Sink>>,
    stats: Option<Arc<Mutex<Counters>>>,
    /// Samples by the number of the vCPU.
    profile: Option<Arc<Mutex<BTreeMap<u32, Samples>>>>,
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
        Self {
            functions: Arc::new(functions()),
            began: Some(Instant::now()),
            trace: wanted.trace.map(sink),
            stats: wanted.stats.then(|| Arc::new(Mutex::new(Counters::new()))),
            profile: wanted.profile.then(Arc::default),
        }
    }

    /// The observer for vCPU `id`; `None` where nothing is watched.
    pub fn observer(&self, id: u32, memory: &GuestMemory) -> Option<Box<dyn Observer>> {
        let began = self.began?;
        let tracer = |sink: &Arc<Sink>| Tracer::new(sink.clone(), self.functions.clone(), id);
        let sampler = |all: &Arc<Mutex<BTreeMap<u32, Samples>>>| Sampler {
            id,
            samples: Samples::default(),
            memory: memory.clone(),
            functions: self.functions.clone(),
            all: all.clone(),
        };
        Some(Box::new(Watch {
            began,
            clock: self.stats.is_some() || self.trace.as_ref().is_some_and(|it| it.wants_time()),
            exit: began,
            trace: self.trace.as_ref().map(tracer),
            stats: self.stats.as_ref().map(|all| (Counters::new(), all.clone())),
            profile: self.profile.as_ref().map(sampler),
        }))
    }

    /// How often the observers want a tick.
    pub fn sampling(&self) -> Option<Duration> {
        self.profile.as_ref().map(|_| profile::PERIOD)
    }

    /// The statistics; `kernel` asks for KVM's own. `device` names what claims a port.
    pub fn statistics(
        &self,
        kernel: impl FnOnce() -> Kernel,
        device: impl Fn(u64) -> Option<&'static str>,
    ) -> Option<Statistics> {
        let counters = lock(self.stats.as_deref()?);
        let statistics = counters.report(&self.functions, device);
        Some(Statistics { kernel: kernel(), ..statistics })
    }

    /// The profile as folded lines.
    pub fn folded(&self) -> Option<String> {
        let mut folded = String::new();
        for (id, samples) in lock(self.profile.as_deref()?).iter() {
            samples.fold(&self.functions, *id, &mut folded);
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
    /// This vCPU's, and where they go in the end.
    stats: Option<(Counters, Arc<Mutex<Counters>>)>,
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
        if let Some((counters, _)) = &mut self.stats {
            counters.exit(record, nanoseconds(self.exit.elapsed()));
        }
        if let Some(trace) = &mut self.trace {
            trace.exit(record);
        }
    }

    fn tick(&mut self, vcpu: &Vcpu) {
        if let Some(profile) = &mut self.profile {
            profile.take(vcpu);
        }
    }

    fn finish(&mut self) {
        if let Some((counters, all)) = &mut self.stats {
            lock(all).merge(std::mem::replace(counters, Counters::new()));
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
    fn take(&mut self, vcpu: &Vcpu) {
        // A vCPU whose registers cannot be had is missed once; its thread will hear of it.
        if let Ok(state) = vcpu.state() {
            self.samples.take(&self.functions, &self.memory, &state);
        }
    }
}

//! `--stats`: what the guest's exits went into. Counted once a vCPU, then put together.
//!
//! Nothing that a guest does makes this grow without bound: what finds no room is counted as
//! "others".

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::naming::inside;
use crate::inspect::Functions;
use crate::kvm::{ExitKind, Stat};
use crate::vcpu::Record;

/// Places and code addresses that are told apart, a vCPU each.
const MOST: usize = 4096;

/// How often, and how long user space took, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    time: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.time += other.time;
    }
}

/// Sums by something, at most so many.
#[derive(Debug)]
struct Sums<K> {
    by: HashMap<K, Sum>,
    others: Sum,
}

impl<K: Eq + Hash + Copy> Sums<K> {
    fn new() -> Self {
        Self { by: HashMap::new(), others: Sum::default() }
    }

    fn add(&mut self, key: K, sum: Sum) {
        let is_room = self.by.len() < MOST;
        match self.by.get_mut(&key) {
            Some(known) => known.add(sum),
            None if is_room => drop(self.by.insert(key, sum)),
            None => self.others.add(sum),
        }
    }

    fn merge(&mut self, other: Self) {
        other.by.into_iter().for_each(|(key, sum)| self.add(key, sum));
        self.others.add(other.others);
    }
}

/// What exits were, and where they came from.
#[derive(Debug)]
pub(super) struct Counters {
    kinds: [Sum; ExitKind::ALL.len()],
    places: Sums<(ExitKind, u64)>,
    code: Sums<(u64, u64)>,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self { kinds: Default::default(), places: Sums::new(), code: Sums::new() }
    }

    /// Counts an exit that user space took `time` nanoseconds for.
    pub(super) fn exit(&mut self, record: &Record, time: u64) {
        let sum = Sum { count: 1, time };
        self.kinds[record.kind as usize].add(sum);
        if record.kind.has_address() {
            self.places.add((record.kind, record.address), sum);
        }
        if record.kind != ExitKind::Interrupted {
            self.code.add((inside(record), record.rip), sum);
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (sum, more) in self.kinds.iter_mut().zip(other.kinds) {
            sum.add(more);
        }
        self.places.merge(other.places);
        self.code.merge(other.code);
    }

    /// The whole as data. `device` names what claims a port.
    pub(super) fn report(
        &self,
        functions: &Functions,
        device: impl Fn(u64) -> Option<&'static str>,
    ) -> Statistics {
        let all = self.kinds.iter().fold(Sum::default(), |mut all, sum| {
            all.add(*sum);
            all
        });
        let kinds = ExitKind::ALL.into_iter().zip(self.kinds).filter(|(_, sum)| sum.count > 0);
        let kinds = kinds.map(|(kind, sum)| KindLine {
            exit: kind.name().into(),
            count: sum.count,
            user_seconds: seconds(sum.time),
        });
        let places = self.places.by.iter().map(|(&(kind, address), sum)| PlaceLine {
            exit: kind.name().into(),
            address,
            device: match kind {
                ExitKind::PioIn | ExitKind::PioOut => device(address).map(Cow::from),
                _ => None,
            },
            count: sum.count,
            user_seconds: seconds(sum.time),
        });
        Statistics {
            exits: all.count,
            user_seconds: seconds(all.time),
            kinds: most_first(kinds.collect(), |line| (line.count, 0)),
            places: most_first(places.collect(), |line| (line.count, line.address)),
            other_places: self.places.others.count,
            functions: self.functions(functions),
            other_code: self.code.others.count,
            kernel: Kernel::default(),
        }
    }

    fn functions(&self, functions: &Functions) -> Vec<FunctionLine> {
        let mut by_start: HashMap<u64, Sum> = HashMap::new();
        for (&(inside, rip), &sum) in &self.code.by {
            let named = functions.name_of(inside);
            let start = named.map_or(rip, |(_, offset)| inside.wrapping_sub(offset));
            by_start.entry(start).or_default().add(sum);
        }
        let lines = by_start.into_iter().map(|(address, sum)| FunctionLine {
            function: functions.name_of(address).map(|(name, _)| name.to_owned()),
            address,
            count: sum.count,
            user_seconds: seconds(sum.time),
        });
        most_first(lines.collect(), |line| (line.count, line.address))
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The largest count first, the lowest address first of those that are as large.
fn most_first<T>(mut lines: Vec<T>, key: impl Fn(&T) -> (u64, u64)) -> Vec<T> {
    lines.sort_by_key(|line| {
        let (count, address) = key(line);
        (u64::MAX - count, address)
    });
    lines
}

/// What a guest's exits went into. [`std::fmt::Display`] makes a table of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// All exits.
    pub exits: u64,
    /// What user space took for them, in seconds.
    pub user_seconds: f64,
    /// By kind.
    pub kinds: Vec<KindLine>,
    /// By port, address, MSR or hypercall.
    pub places: Vec<PlaceLine>,
    /// Exits at further places, more than are told apart.
    pub other_places: u64,
    /// By the guest's function that they came from, but for interruptions.
    pub functions: Vec<FunctionLine>,
    /// Exits from further code addresses, more than are told apart.
    pub other_code: u64,
    /// What KVM counted itself.
    pub kernel: Kernel,
}

/// The exits of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KindLine {
    /// Its name.
    pub exit: Cow<'static, str>,
    /// How many.
    pub count: u64,
    /// What user space took for them, in seconds.
    pub user_seconds: f64,
}

/// The exits of one kind at one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlaceLine {
    /// The kind's name.
    pub exit: Cow<'static, str>,
    /// Port, guest-physical address, MSR or hypercall.
    pub address: u64,
    /// What claims a port.
    pub device: Option<Cow<'static, str>>,
    /// How many.
    pub count: u64,
    /// What user space took for them, in seconds.
    pub user_seconds: f64,
}

/// The exits from one function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FunctionLine {
    /// Its name; `None` where no symbol is known.
    pub function: Option<String>,
    /// Where it starts; the instruction itself where no symbol is known.
    pub address: u64,
    /// How many.
    pub count: u64,
    /// What user space took for them, in seconds.
    pub user_seconds: f64,
}

/// The kernel's counters that are not zero.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kernel {
    /// Of the VM.
    pub vm: Vec<Stat>,
    /// Of each vCPU.
    pub vcpus: Vec<Vec<Stat>>,
}

impl Kernel {
    /// From what KVM gave.
    pub fn new(vm: Vec<Stat>, vcpus: Vec<Vec<Stat>>) -> Self {
        let used = |stats: Vec<Stat>| -> Vec<Stat> {
            stats.into_iter().filter(|stat| stat.values.iter().any(|value| *value != 0)).collect()
        };
        Self { vm: used(vm), vcpus: vcpus.into_iter().map(used).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Exit;

    fn out(port: u16, rip: u64) -> Record {
        Record::new(rip, 0, &Exit::PioOut { port, size: 1, data: &[0] })
    }

    #[test]
    fn exits_by_kind_place_and_function() {
        let mut counters = Counters::new();
        for _ in 0..3 {
            counters.exit(&out(0x3F8, 0x1004), 1_000_000_000);
        }
        counters.exit(&out(0xF4, 0x1008), 0);
        counters.exit(&Record::new(0x5000, 0, &Exit::Hlt), 0);
        counters.exit(&Record::new(0x5000, 0, &Exit::Interrupted), 0);
        let functions = Functions::named(&[(0x1000, 0x1100, "put_char")]);
        let device = |port| (port == 0x3F8).then_some("com1");
        let stats = counters.report(&functions, device);
        assert_eq!((stats.exits, stats.user_seconds), (6, 3.0));
        let kinds: Vec<_> = stats.kinds.iter().map(|line| (&*line.exit, line.count)).collect();
        assert_eq!(kinds, [("pio_out", 4), ("hlt", 1), ("interrupted", 1)]);
        let places: Vec<_> = stats
            .places
            .iter()
            .map(|line| (line.address, line.device.as_deref(), line.count))
            .collect();
        assert_eq!(places, [(0x3F8, Some("com1"), 3), (0xF4, None, 1)]);
        let functions: Vec<_> =
            stats.functions.iter().map(|line| (line.function.as_deref(), line.count)).collect();
        assert_eq!(functions, [(Some("put_char"), 4), (None, 1)]);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_lost() {
        let (mut all, mut one) = (Counters::new(), Counters::new());
        for at in 0..10_000_u64 {
            one.exit(&Record::new(at, 0, &Exit::MmioWrite { address: at, data: &[0] }), 1);
        }
        all.exit(&out(1, 1), 1);
        all.merge(one);
        let stats = all.report(&Functions::default(), |_| None);
        assert_eq!((stats.places.len(), stats.functions.len()), (MOST, MOST));
        let told: u64 = stats.places.iter().map(|line| line.count).sum();
        assert_eq!((told + stats.other_places, stats.exits), (10_001, 10_001));
    }
}

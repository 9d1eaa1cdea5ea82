//! What is counted and timed of runs, and what of it is one execution's. Called by `judge`; knows
//! numbers, not what an instruction is.

use super::lab::Run;
use super::program::REPEATS;

/// What KVM counted, and the time, of one run.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Exits to KVM.
    pub exits: Option<u64>,
    /// Instructions that KVM emulated.
    pub emulations: Option<u64>,
    /// The kernel's counters that grew, these two among them.
    pub others: Vec<(String, u64)>,
    /// Exits to user space, but for the last.
    pub user: Vec<&'static str>,
    /// Cycles of a timed run.
    pub cycles: f64,
}

impl Counted {
    /// Of this run.
    pub fn of(run: &Run) -> Self {
        Self {
            exits: run.counts.of("exits"),
            emulations: run.counts.of("insn_emulation"),
            others: run.counts.counters.clone().unwrap_or_default(),
            user: run.counts.user.iter().map(|kind| kind.name()).collect(),
            cycles: run.cycles().into(),
        }
    }

    /// The least of both, each for itself.
    pub fn least(self, other: Self) -> Self {
        let fewer = if other.exits < self.exits { other.others } else { self.others };
        Self {
            exits: self.exits.min(other.exits),
            emulations: self.emulations.min(other.emulations),
            others: fewer,
            user: self.user,
            cycles: self.cycles.min(other.cycles),
        }
    }
}

/// What one execution costs, in cycles.
pub struct Cycles {
    /// The median of what each measurement has more than the one without it beside it.
    pub median: f64,
    /// The least with it less the least without it.
    pub least: f64,
    /// The quartiles.
    pub spread: [f64; 2],
}

impl Cycles {
    /// Of timed runs with it, and of those without it beside them.
    pub fn of(with_it: &[f64], floors: &[f64]) -> Self {
        let each = |cycles: f64| tenth(cycles / f64::from(REPEATS));
        let mut more: Vec<_> = with_it.iter().zip(floors).map(|(run, floor)| run - floor).collect();
        more.sort_by(f64::total_cmp);
        let at = |quarters: usize| each(more[(more.len() - 1) * quarters / 4]);
        let least = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
        let least = each(least(with_it) - least(floors));
        Self { median: at(2), least, spread: [at(1), at(3)] }
    }
}

/// What one execution cost beyond its floor.
pub struct Share {
    /// Exits to KVM.
    pub exits: Option<f64>,
    /// Instructions that KVM emulated.
    pub emulations: Option<f64>,
    /// The kernel's other counters that grew with each.
    pub counters: Vec<String>,
    /// The kinds of exit that came to user space.
    pub user: Vec<String>,
    /// Cycles, where it was timed.
    pub cycles: Option<f64>,
}

/// One execution's share of what `counted` has more than its floor.
pub fn share(counted: &Counted, floor: &Counted, times: f64) -> Share {
    let more = |new: Option<u64>, old: Option<u64>| {
        Some(tenth((new? as f64 - old? as f64).max(0.0) / times))
    };
    let before = |name: &str| {
        floor.others.iter().find(|(other, _)| other == name).map_or(0, |(_, grown)| *grown)
    };
    let each = |(name, grown): &&(String, u64)| {
        let each = (*grown as f64 - before(name) as f64) / times;
        each > 0.5 && !matches!(&name[..], "exits" | "insn_emulation")
    };
    let mut user: Vec<String> = counted.user.iter().map(|&kind| kind.to_owned()).collect();
    user.dedup();
    Share {
        exits: more(counted.exits, floor.exits),
        emulations: more(counted.emulations, floor.emulations),
        counters: counted.others.iter().filter(each).map(|(name, _)| name.clone()).collect(),
        user,
        cycles: (times > 1.0).then(|| tenth((counted.cycles - floor.cycles) / times)),
    }
}

/// To a tenth.
pub fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0 + 0.0 // no -0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_measurement_does_not_count_and_a_negative_one_shows() {
        let times = f64::from(REPEATS);
        let floors = [10.0 * times, 11.0 * times, 500.0 * times, 10.0 * times, 10.0 * times];
        let with_it = [15.0 * times, 900.0 * times, 505.0 * times, 15.0 * times, 15.0 * times];
        let cycles = Cycles::of(&with_it, &floors);
        assert_eq!((cycles.median, cycles.least, cycles.spread), (5.0, 5.0, [5.0, 5.0]));
        assert_eq!(Cycles::of(&[0.0], &[times]).median, -1.0);
    }
}

//! The counts of a run, in words and as an exit code.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::text::{one_line, plural, seconds};
use crate::runner::outcome::{Record, Status};
use crate::verdict::{Refusal, Verdict};

/// How many tests came to what.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Those that ended as they were to.
    pub passed: usize,
    /// Those of them that took more than one attempt.
    pub flaky: usize,
    /// Those that ended by themselves, otherwise.
    pub failed: usize,
    /// Those whose guest died, by the name of the cause.
    pub died: BTreeMap<String, usize>,
    /// Those whose time was up.
    pub timed_out: usize,
    /// Those that could not be run.
    pub broken: usize,
    /// Those that were not to run, by the reason.
    pub skipped: BTreeMap<String, usize>,
    /// Those that were to run and did not.
    pub not_run: usize,
    /// Was there nothing to run, as in a shard of few tests?
    #[serde(skip)]
    pub none_asked: bool,
    /// The exit code of what failed when all tests had passed.
    #[serde(skip)]
    pub afterwards: Option<u8>,
    /// The signal that ended the run.
    pub signal: Option<u8>,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "as_seconds")]
    pub took: Duration,
}

fn as_seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

impl Totals {
    pub(in crate::runner) fn count(&mut self, record: &Record) {
        match record.status {
            Status::Passed => self.passed += 1,
            Status::Failed => self.failed += 1,
            Status::Died => {
                let cause = record.deciding().map_or("died", |it| &it.verdict);
                *self.died.entry(cause.to_owned()).or_default() += 1;
            }
            Status::TimedOut => self.timed_out += 1,
            Status::Broken => self.broken += 1,
            Status::Skipped => *self.skipped.entry(record.cause.clone()).or_default() += 1,
            Status::NotRun => self.not_run += 1,
        }
        self.flaky += usize::from(record.is_flaky());
    }

    /// All tests.
    pub fn total(&self) -> usize {
        self.passed + self.bad() + self.skipped.values().sum::<usize>()
    }

    /// Those that make the run fail.
    pub fn bad(&self) -> usize {
        self.failed
            + self.died.values().sum::<usize>()
            + self.timed_out
            + self.broken
            + self.not_run
    }

    /// The runner's exit code: 0 only where all that was to run did, and passed.
    pub fn exit_code(&self) -> u8 {
        match self.signal {
            Some(signal) => Verdict::Signal(signal).exit_code(),
            None if self.bad() > 0 => 1,
            None if self.passed == 0 && !self.none_asked => refusal(Refusal::NoImage),
            None => self.afterwards.unwrap_or(0),
        }
    }

    /// The counts on one line.
    pub fn line(&self) -> String {
        let mut parts = vec![match self.flaky {
            0 => format!("{} passed", self.passed),
            flaky => format!("{} passed ({flaky} flaky)", self.passed),
        }];
        let died: Vec<_> = self.died.iter().map(|(cause, n)| format!("{cause} {n}")).collect();
        let skipped: usize = self.skipped.values().sum();
        for (n, what) in [
            (self.failed, "failed".to_owned()),
            (self.died.values().sum(), format!("died ({})", died.join(", "))),
            (self.timed_out, "timed out".to_owned()),
            (self.broken, "could not be run".to_owned()),
            (skipped, "skipped".to_owned()),
            (self.not_run, "not run".to_owned()),
        ] {
            if n > 0 {
                parts.push(format!("{n} {what}"));
            }
        }
        format!("{}: {}; {}", plural(self.total(), "test"), parts.join(", "), seconds(self.took))
    }

    /// Why tests were skipped, a line a reason.
    pub fn reasons(&self) -> Vec<String> {
        let line = |(reason, n): (&String, &usize)| format!("{n} skipped: {}", one_line(reason));
        self.skipped.iter().map(line).collect()
    }
}

fn refusal(refusal: Refusal) -> u8 {
    Verdict::Refused { refusal, message: String::new() }.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{Attempt, Expect, Test};
    use crate::verdict::Death;

    #[test]
    fn success_needs_a_test_that_passed_and_none_that_did_not() {
        let code = |change: fn(&mut Totals)| {
            let mut totals = Totals { passed: 1, ..Totals::default() };
            change(&mut totals);
            totals.exit_code()
        };
        assert_eq!(code(|_| {}), 0);
        assert_eq!(code(|it| it.passed = 0), 66);
        assert_eq!(code(|it| (it.passed, it.none_asked) = (0, true)), 0);
        assert_eq!(code(|it| it.failed = 1), 1);
        assert_eq!(code(|it| _ = it.died.insert("panic".to_owned(), 1)), 1);
        assert_eq!(code(|it| it.timed_out = 1), 1);
        assert_eq!(code(|it| it.broken = 1), 1);
        assert_eq!(code(|it| it.not_run = 1), 1);
        assert_eq!(code(|it| _ = it.skipped.insert("slow".to_owned(), 1)), 0);
        assert_eq!(code(|it| it.signal = Some(15)), 143);
    }

    #[test]
    fn a_death_is_counted_by_its_cause_whatever_a_retry_was() {
        let attempt = |verdict| Attempt::new(&verdict, &Expect::Success, Duration::ZERO);
        let died = attempt(Verdict::died(Death::Panic, ""));
        let skipped = attempt(Verdict::from_guest_code(77));
        let test = std::sync::Arc::new(Test::for_tests("t", 1));
        let mut totals = Totals::default();
        totals.count(&Record::of(test, "t".to_owned(), vec![died, skipped]));
        assert_eq!(totals.died, BTreeMap::from([("panic".to_owned(), 1)]));
    }

    #[test]
    fn the_line_has_every_count() {
        let totals = Totals {
            passed: 5,
            flaky: 1,
            died: BTreeMap::from([("panic".to_owned(), 1), ("triple-fault".to_owned(), 2)]),
            skipped: BTreeMap::from([("slow".to_owned(), 1)]),
            not_run: 4,
            took: Duration::from_millis(1500),
            ..Totals::default()
        };
        assert_eq!(
            totals.line(),
            "13 tests: 5 passed (1 flaky), 3 died (panic 1, triple-fault 2), 1 skipped, 4 not run; 1.500s"
        );
    }
}

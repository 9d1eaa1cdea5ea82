//! What became of a test.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::test::{Expect, Test};
use crate::verdict::{Refusal, Success, Verdict};

/// What became of one attempt, or of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It ended as it was to.
    Passed,
    /// It ended by itself, otherwise.
    Failed,
    /// The guest died.
    Died,
    /// Its time was up.
    TimedOut,
    /// It could not be run, and that was not the guest's doing.
    Broken,
    /// It was not to run, or said so itself.
    Skipped,
    /// It was to run and did not.
    NotRun,
}

impl Status {
    /// Does it make the whole run fail?
    pub fn is_bad(self) -> bool {
        !matches!(self, Self::Passed | Self::Skipped)
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Died => "died",
            Self::TimedOut => "timed out",
            Self::Broken => "broken",
            Self::Skipped => "skipped",
            Self::NotRun => "not run",
        }
    }
}

/// One run of a test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// What became of it.
    pub status: Status,
    /// The verdict's name in the table of exit codes.
    pub verdict: String,
    /// The exit code that `ringfence run` would have had.
    pub exit_code: u8,
    /// The verdict in words, and what was expected where that was something else.
    pub cause: String,
    /// From the start of the machine, or its reset, to the verdict.
    pub seconds: f64,
    /// What the guest wrote; see [`KEPT`].
    pub serial: String,
    /// Why it died, as a page.
    pub autopsy: Option<String>,
}

/// Bytes of a guest's output that are kept: the beginning, and three times as much of the end.
pub const KEPT: usize = 256 << 10;

impl Attempt {
    /// An image's first boot, which has announced so many tests.
    pub(super) fn announced(tests: usize, took: Duration) -> Self {
        let verdict = Verdict::Success(Success::DebugExit);
        let cause = format!("it announced its tests: {tests}");
        Self { cause, ..Self::new(&verdict, &Expect::Success, took) }
    }

    /// Whatever its guest said, it could not be run, for this reason.
    pub(super) fn count_as_broken(&mut self, refusal: Refusal, message: String) {
        let verdict = Verdict::Refused { refusal, message };
        self.status = Status::Broken;
        self.verdict = verdict.name().to_owned();
        self.exit_code = verdict.exit_code();
        self.cause = verdict.to_string();
    }

    /// None any more: a signal ended the run.
    pub(super) fn ended_by(signal: u8, took: Duration) -> Self {
        Self::new(&Verdict::Signal(signal), &Expect::Success, took)
    }

    /// Judges a verdict.
    pub fn new(verdict: &Verdict, expect: &Expect, took: Duration) -> Self {
        let (status, cause) = judge(verdict, expect);
        Self {
            status,
            verdict: verdict.name().to_owned(),
            exit_code: verdict.exit_code(),
            cause,
            seconds: took.as_secs_f64(),
            serial: String::new(),
            autopsy: None,
        }
    }
}

/// The last line by which kvm-unit-tests sum up, with what it is worth to a reader.
pub fn summary(serial: &str) -> Option<&str> {
    serial.lines().rev().take(5).find_map(|line| line.trim_end().strip_prefix("SUMMARY: "))
}

/// Why a guest skipped its test: the last line by which `guests/include/ringfence.h` says so.
pub fn skip_reason(serial: &str) -> Option<&str> {
    let reasons = serial.lines().rev().find_map(|line| line.trim_end().strip_prefix("skipped: "));
    reasons.filter(|reason| !reason.is_empty())
}

fn judge(verdict: &Verdict, expect: &Expect) -> (Status, String) {
    if expect.is_skip(verdict) {
        return (Status::Skipped, "the guest says so".to_owned());
    }
    if expect.is_met(verdict) {
        return (Status::Passed, verdict.to_string());
    }
    let status = match verdict {
        Verdict::Success(_) | Verdict::Failed { .. } => Status::Failed,
        Verdict::Died { .. } => Status::Died,
        Verdict::TimedOut { .. } => Status::TimedOut,
        Verdict::Signal(_) => Status::NotRun,
        Verdict::Skipped { .. } => Status::Skipped,
        Verdict::Refused { .. } => Status::Broken,
    };
    let success_expected = matches!(expect, Expect::Success | Expect::KvmUnitTests);
    if success_expected && !verdict.is_success() {
        return (status, verdict.to_string());
    }
    (status, format!("{verdict}; expected: {expect}"))
}

/// What a guest wrote, as text of bearable length.
pub fn serial_text(bytes: &[u8]) -> String {
    if bytes.len() <= KEPT {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let (head, tail) = (&bytes[..KEPT / 4], &bytes[bytes.len() - KEPT / 4 * 3..]);
    format!(
        "{}\n[ringfence: {} bytes are left out here]\n{}",
        String::from_utf8_lossy(head),
        bytes.len() - head.len() - tail.len(),
        String::from_utf8_lossy(tail)
    )
}

/// What became of a test, all attempts together.
#[derive(Clone, Debug)]
pub struct Record {
    /// The test.
    pub test: std::sync::Arc<Test>,
    /// Its name, with the round where there are several.
    pub name: String,
    /// What became of it.
    pub status: Status,
    /// Why, in words.
    pub cause: String,
    /// Its attempts; none where it did not run.
    pub attempts: Vec<Attempt>,
}

impl Record {
    /// A test that did not run.
    pub fn without_attempt(
        test: std::sync::Arc<Test>,
        name: String,
        status: Status,
        why: String,
    ) -> Self {
        Self { test, name, status, cause: why, attempts: Vec::new() }
    }

    /// A test, all attempts at it made.
    pub fn of(test: std::sync::Arc<Test>, name: String, attempts: Vec<Attempt>) -> Self {
        let (status, cause) = match (attempts.last(), last_bad(&attempts)) {
            // That it does not apply here does not undo that it failed here.
            (Some(last), Some(bad)) if last.status == Status::Skipped => {
                (bad.status, format!("{}; a retry was skipped: {}", bad.cause, last.cause))
            }
            (Some(last), _) => (last.status, last.cause.clone()),
            (None, _) => (Status::NotRun, String::new()),
        };
        Self { test, name, status, cause, attempts }
    }

    /// Did it pass after an attempt that did not?
    pub fn is_flaky(&self) -> bool {
        self.status == Status::Passed && self.attempts.len() > 1
    }

    /// Seconds of all attempts.
    pub fn seconds(&self) -> f64 {
        // Not sum(): of nothing that is -0.0.
        self.attempts.iter().fold(0.0, |sum, attempt| sum + attempt.seconds)
    }

    /// The last attempt.
    pub fn last(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// The attempt that its status comes from: the last, or a bad one before that was skipped.
    pub fn deciding(&self) -> Option<&Attempt> {
        if self.status.is_bad() { last_bad(&self.attempts) } else { self.last() }
    }
}

fn last_bad(attempts: &[Attempt]) -> Option<&Attempt> {
    attempts.iter().rfind(|attempt| attempt.status.is_bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Death;

    #[test]
    fn verdicts_become_statuses() {
        let judge = |verdict, expect: &str| judge(&verdict, &expect.parse().unwrap());
        let fault = || Verdict::died(Death::TripleFault, "");
        assert_eq!(judge(fault(), "success").0, Status::Died);
        assert_eq!(judge(fault(), "triple-fault").0, Status::Passed);
        assert_eq!(judge(Verdict::from_guest_code(77), "success").0, Status::Skipped);
        assert_eq!(judge(Verdict::from_guest_code(3), "success").0, Status::Failed);
        let (status, cause) = judge(Verdict::from_guest_code(0), "panic");
        assert_eq!(status, Status::Failed);
        assert!(cause.contains("expected: panic"), "{cause}");
    }

    #[test]
    fn a_failure_is_not_undone_by_a_skip() {
        let attempt =
            |code| Attempt::new(&Verdict::from_guest_code(code), &Expect::Success, Duration::ZERO);
        let record = |codes: &[u32]| {
            let test = std::sync::Arc::new(Test::for_tests("t", 1));
            Record::of(test, String::new(), codes.iter().map(|code| attempt(*code)).collect())
        };
        assert_eq!(record(&[1, 77]).status, Status::Failed);
        assert!(record(&[1, 77]).cause.contains("a retry was skipped"));
        let deciding = |codes: &[u32]| record(codes).deciding().map(|it| it.exit_code);
        assert_eq!([&[1, 2, 77][..], &[1, 0], &[]].map(deciding), [Some(2), Some(0), None]);
        assert_eq!(record(&[77]).status, Status::Skipped);
        assert_eq!(record(&[1, 0]).status, Status::Passed);
        assert!(record(&[1, 0]).is_flaky());
    }

    #[test]
    fn long_output_keeps_both_its_ends() {
        let long = [b"begin".as_slice(), &vec![b'x'; 2 * KEPT], b"end"].concat();
        let text = serial_text(&long);
        assert!(text.starts_with("begin") && text.ends_with("end") && text.len() < KEPT + 100);
        assert!(text.contains("bytes are left out"));
    }
}

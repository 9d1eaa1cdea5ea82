//! A test: a machine, and what is to become of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::outcome::Attempt;
use crate::config::Description;
use crate::verdict::{EXIT_CODES, Success, Verdict};

/// What a guest says at a debug exit that skips its own test, as automake's and
/// kvm-unit-tests' programs do.
pub const SKIPPED: u32 = 77;

/// Time that a test has that says nothing of it.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// One test. It travels to the worker that runs it as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Test {
    /// Unique among all that run.
    pub name: String,
    /// Where it was found: a file or a directory; for reports.
    pub suite: String,
    /// The machine.
    pub machine: Description,
    /// A module that is no file: its string, and its text.
    pub module: Option<(String, String)>,
    /// How it has to end.
    pub expect: Expect,
    /// Time for one attempt.
    pub limit: Duration,
    /// Attempts after the first one that fails.
    pub retries: u32,
    /// Words to choose it by.
    pub tags: Vec<String>,
    /// Why it is not to run.
    pub skip: Option<String>,
    /// Does it run only when it is asked for by its name or a tag?
    pub manual: bool,
    /// What of its machine is not as it asks, and probably does no harm.
    pub notes: Vec<String>,
    /// Bytes of RAM, for the budget.
    pub memory: u64,
    /// Does its image take part in the mailbox? It is several tests then.
    pub mailbox: bool,
    /// Does whoever wrote the test say so? An image that announces none has failed then.
    pub must_announce: bool,
    /// Which of an image's tests this is.
    pub member: Option<String>,
    /// Of what the image announced when it was asked, a number that differs where the names do: each
    /// of its boots has to announce the same.
    pub announced: Option<u64>,
    /// What became of it, if that showed when its image was asked for its tests.
    #[serde(skip)]
    pub ended: Vec<Attempt>,
    /// Does it stand for the boots of an image that was listed at a retry only? It is no test of
    /// the image's.
    #[serde(skip)]
    pub is_of_boots: bool,
}

/// A number that differs, in all likelihood, where a set of names does; the same in all processes
/// of a run.
pub(super) fn fingerprint<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    let mut hasher = DefaultHasher::new();
    names.hash(&mut hasher);
    hasher.finish()
}

/// What stands between an image's name and its test's.
pub(super) const BETWEEN: &str = "::";

impl Test {
    /// The tests that an image has announced.
    pub(super) fn members(&self, names: Vec<String>) -> impl Iterator<Item = Self> + use<'_> {
        let announced = Some(fingerprint(names.iter().map(String::as_str)));
        names.into_iter().map(move |name| Self {
            name: format!("{}{BETWEEN}{name}", self.name),
            member: Some(name),
            announced,
            // The machine, and the checkpoint that it is put back to.
            memory: self.memory.saturating_mul(2),
            ..self.clone()
        })
    }

    /// Is it not one of the tests that are counted out to shards? Another machine may not have it.
    pub(super) fn is_in_every_shard(&self) -> bool {
        self.is_of_boots || self.is_unlisted()
    }

    /// Is it an image of which nobody can say which tests it has?
    pub fn is_unlisted(&self) -> bool {
        self.ended.last().is_some_and(|attempt| attempt.status.is_bad())
    }

    /// Its name, without that of the image's test.
    pub(super) fn image_name(&self) -> &str {
        let member = self.member.as_deref().unwrap_or_default();
        let image = self.name.strip_suffix(member).and_then(|name| name.strip_suffix(BETWEEN));
        image.filter(|_| self.member.is_some()).unwrap_or(&self.name)
    }
}

#[cfg(test)]
impl Test {
    /// One that says nothing but this.
    pub(super) fn for_tests(name: &str, memory: u64) -> Self {
        Self {
            name: name.to_owned(),
            suite: "suite".to_owned(),
            machine: Description::default(),
            module: None,
            expect: Expect::Success,
            limit: DEFAULT_LIMIT,
            retries: 0,
            tags: Vec::new(),
            skip: None,
            manual: false,
            notes: Vec::new(),
            memory,
            mailbox: false,
            must_announce: false,
            member: None,
            announced: None,
            ended: Vec::new(),
            is_of_boots: false,
        }
    }
}

/// How a test has to end to pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// With success.
    #[default]
    Success,
    /// As kvm-unit-tests do: success is a debug exit, to power off is not enough, and what
    /// skips a test is `SKIPPED` as QEMU's exit status.
    KvmUnitTests,
    /// With this exit code of ringfence's.
    Code(u8),
    /// By the debug exit after which this is QEMU's exit status.
    QemuStatus(u8),
    /// With a verdict of this name in the table of exit codes.
    Named(String),
}

impl Expect {
    /// Is it this one?
    pub fn is_met(&self, verdict: &Verdict) -> bool {
        // What did not run has no verdict of its own, whatever code stands for that.
        if matches!(verdict, Verdict::Refused { .. } | Verdict::Signal(_)) {
            return false;
        }
        match self {
            Self::Success => verdict.is_success(),
            Self::KvmUnitTests => *verdict == Verdict::Success(Success::DebugExit),
            Self::Code(code) => verdict.exit_code() == *code,
            Self::QemuStatus(status) => {
                verdict.guest_code().is_some() && verdict.qemu_exit_code() == *status
            }
            Self::Named(name) => verdict.name() == name,
        }
    }

    /// Would this verdict say that the test was skipped?
    pub fn is_skip(&self, verdict: &Verdict) -> bool {
        let code = match self {
            Self::KvmUnitTests => SKIPPED >> 1,
            _ => SKIPPED,
        };
        *verdict == Verdict::Failed { code } && !self.is_met(verdict)
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Success => write!(f, "success"),
            Self::KvmUnitTests => write!(f, "success by a debug exit"),
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::QemuStatus(status) => write!(f, "QEMU's exit status {status} by a debug exit"),
            Self::Named(name) => write!(f, "{name}"),
        }
    }
}

impl std::str::FromStr for Expect {
    type Err = String;

    /// A name of the table of exit codes, or a code.
    fn from_str(text: &str) -> Result<Self, String> {
        // A test of ringfence's own refusals would pass for the wrong reason.
        let is_guests = |code: u8| code <= 63 || (80..=124).contains(&code);
        match text.parse::<u8>() {
            Ok(0) => return Ok(Self::Success),
            Ok(code) if is_guests(code) => return Ok(Self::Code(code)),
            Ok(_) => {
                return Err(format!("{text} is no verdict of a guest's: it is ringfence's own"));
            }
            Err(_) => {}
        }
        let mut names: Vec<_> =
            EXIT_CODES.iter().filter(|row| is_guests(row.first)).map(|row| row.name).collect();
        names.dedup();
        match text {
            "success" => Ok(Self::Success),
            _ if names.contains(&text) => Ok(Self::Named(text.to_owned())),
            _ => Err(format!("{text:?} is no verdict: an exit code, or {}", names.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Death;

    #[test]
    fn verdicts_by_name_and_code() {
        let fault = Verdict::died(Death::TripleFault, "somewhere");
        assert!("triple-fault".parse::<Expect>().unwrap().is_met(&fault));
        assert!("80".parse::<Expect>().unwrap().is_met(&fault));
        assert!(!"success".parse::<Expect>().unwrap().is_met(&fault));
        assert!("0".parse::<Expect>().unwrap().is_met(&Verdict::Success(Success::PowerOff)));
        assert!(!Expect::KvmUnitTests.is_met(&Verdict::Success(Success::PowerOff)));
        let refusal = crate::verdict::Refusal::NoImage;
        let missing = Verdict::Refused { refusal, message: String::new() };
        assert!(!Expect::Code(66).is_met(&missing));
        assert!(Expect::QemuStatus(33).is_met(&Verdict::Failed { code: 16 }));
        for other in [Verdict::Failed { code: 17 }, Verdict::Success(Success::DebugExit), fault] {
            assert!(!Expect::QemuStatus(33).is_met(&other), "{other}");
        }
        for bad in ["", "256", "no-kvm", "bug", "sucess", "65", "66", "78", "137"] {
            assert!(bad.parse::<Expect>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_guest_skips_its_test_unless_77_is_what_was_expected() {
        let skip = Verdict::Failed { code: SKIPPED };
        assert!(Expect::Success.is_skip(&skip) && !Expect::KvmUnitTests.is_skip(&skip));
        assert!(Expect::KvmUnitTests.is_skip(&Verdict::Failed { code: 38 }));
        assert!(!Expect::Named("failed".to_owned()).is_skip(&skip));
        assert!(!Expect::Code(63).is_skip(&Verdict::Failed { code: 300 }));
    }
}

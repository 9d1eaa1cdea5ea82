//! What became of a guest: the [`Verdict`], and the one table of exit codes.
//!
//! Every layer may name a verdict; this module knows none of them. Devices end a machine
//! by telling its [`StopLine`] the verdict, `main` turns it into the process's exit code.

use std::fmt;
use std::time::Duration;

/// One row of the table of exit codes: the codes `first..=last` and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode {
    /// First code of the row.
    pub first: u8,
    /// Last code of the row (the same as `first` but for ranges).
    pub last: u8,
    /// The name that reports use (`verdict` of the JSON record).
    pub name: &'static str,
    /// What it means, for people.
    pub meaning: &'static str,
}

const fn row(first: u8, last: u8, name: &'static str, meaning: &'static str) -> ExitCode {
    ExitCode { first, last, name, meaning }
}

/// The contract between ringfence and the scripts that call it. Shown by
/// `ringfence help exit-codes` and in the README. 64 to 78 follow `sysexits.h`, 124
/// follows `timeout(1)`, 128+n the shell.
pub const EXIT_CODES: &[ExitCode] = &[
    row(0, 0, "success", "the guest said success (debug exit 0), or powered off cleanly"),
    row(1, 62, "failed", "the guest's own failure code, unchanged"),
    row(
        63,
        63,
        "failed",
        "a larger failure code of the guest's (its exact value is in the report)",
    ),
    row(64, 64, "usage", "the command line was not understood"),
    row(65, 65, "bad-image", "the image was not understood, or cannot be loaded"),
    row(66, 66, "no-image", "the image was not found, or is unreadable"),
    row(70, 70, "bug", "a bug in ringfence"),
    row(71, 71, "host", "the host refused something (memory, a file, an ioctl)"),
    row(77, 77, "no-kvm", "no usable KVM: absent, no permission, or a capability is missing"),
    row(78, 78, "bad-config", "the configuration is bad"),
    row(80, 80, "triple-fault", "the guest died: triple fault"),
    row(81, 81, "unrunnable", "the guest died: an instruction that KVM could not run"),
    row(82, 82, "panic", "the guest died: it reported a panic"),
    row(83, 83, "halted", "the guest died: halted for ever (hlt with interrupts off)"),
    row(84, 84, "reset", "the guest died: it asked for a reset"),
    row(85, 85, "strict", "the guest died: it broke a rule of strict mode"),
    row(86, 86, "invalid-entry", "the guest died: its processor's state is not a valid one"),
    row(124, 124, "timeout", "the time limit was reached (--timeout)"),
    row(129, 192, "signal", "128+n: ringfence itself was ended by signal n"),
];

/// How a guest that did well ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// It wrote 0 to a debug exit.
    DebugExit,
    /// It powered the machine off.
    PowerOff,
    /// It suspended the machine to RAM, and had set nothing to wake it.
    Suspended,
    /// It halted for ever, and the caller said that this is how it ends.
    Halted,
    /// It asked for a reset, and the caller said that this is how it ends.
    Reset,
}

/// What a guest died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// A fault while a double fault was delivered (Intel SDM Vol. 3A 6.15, "Interrupt 8").
    TripleFault,
    /// KVM met an instruction, or a place to fetch one from, that it cannot run.
    Unrunnable,
    /// The guest said so itself.
    Panic,
    /// Every processor halted with interrupts off.
    Halted,
    /// The guest asked for a reset.
    Reset,
    /// Strict mode found a broken rule.
    Strict,
    /// The hardware, or KVM, refused to enter the guest with this state.
    InvalidEntry,
}

/// Whose fault it is that a machine could not be built or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The command line.
    Usage,
    /// The image is not what it should be.
    BadImage,
    /// The image cannot be read.
    NoImage,
    /// Ringfence itself.
    Bug,
    /// The host's kernel.
    Host,
    /// There is no KVM to use.
    NoKvm,
    /// The machine description.
    BadConfig,
}

/// What became of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ended well.
    Success(Success),
    /// It ended by itself with a failure code, never 0.
    Failed {
        /// The value it gave.
        code: u32,
    },
    /// It died.
    Died {
        /// Of what.
        cause: Death,
        /// Where, and what else is known, for people; may be empty.
        detail: String,
    },
    /// It was still running when its time was up.
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// Ringfence was told by a signal to end.
    Signal(
        /// The signal's number, 1 to 64.
        u8,
    ),
    /// It did not run because there is no KVM, and the caller said that this is no failure.
    Skipped {
        /// Why there is none.
        reason: String,
    },
    /// It did not run, or could not go on, and that was not the guest's doing.
    Refused {
        /// Whose fault it is.
        refusal: Refusal,
        /// The chain of causes, for people.
        message: String,
    },
}

impl Verdict {
    /// The verdict of a guest that wrote `code` to a debug exit.
    pub fn from_guest_code(code: u32) -> Self {
        if code == 0 { Self::Success(Success::DebugExit) } else { Self::Failed { code } }
    }

    /// A death with nothing more to say.
    pub fn died(cause: Death, detail: impl Into<String>) -> Self {
        Self::Died { cause, detail: detail.into() }
    }

    /// Did the guest end well?
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Success(_))
    }

    /// The process's exit code, a row of [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Success(_) | Self::Skipped { .. } => 0,
            Self::Failed { code } => u8::try_from(*code).unwrap_or(63).clamp(1, 63),
            Self::Died { cause, .. } => match cause {
                Death::TripleFault => 80,
                Death::Unrunnable => 81,
                Death::Panic => 82,
                Death::Halted => 83,
                Death::Reset => 84,
                Death::Strict => 85,
                Death::InvalidEntry => 86,
            },
            Self::TimedOut { .. } => 124,
            Self::Signal(n) => 128 + (*n).clamp(1, 64),
            Self::Refused { refusal, .. } => match refusal {
                Refusal::Usage => 64,
                Refusal::BadImage => 65,
                Refusal::NoImage => 66,
                Refusal::Bug => 70,
                Refusal::Host => 71,
                Refusal::NoKvm => 77,
                Refusal::BadConfig => 78,
            },
        }
    }

    /// QEMU's `isa-debug-exit` convention, for scripts that were written for it:
    /// `(code << 1) | 1` for a debug exit, [`Self::exit_code`] for everything else.
    pub fn qemu_exit_code(&self) -> u8 {
        let code = match self {
            Self::Success(Success::DebugExit) => 0,
            Self::Failed { code } => *code,
            _ => return self.exit_code(),
        };
        (code << 1 | 1) as u8 // exit(2) keeps the low eight bits, as it does for QEMU
    }

    /// Its name in reports: that of its row, or "skipped".
    pub fn name(&self) -> &'static str {
        if matches!(self, Self::Skipped { .. }) { "skipped" } else { self.row().name }
    }

    /// The row of [`EXIT_CODES`] that this verdict belongs to.
    pub fn row(&self) -> &'static ExitCode {
        let code = self.exit_code();
        EXIT_CODES
            .iter()
            .find(|row| (row.first..=row.last).contains(&code))
            .unwrap_or(&EXIT_CODES[0])
    }

    /// The value that the guest gave at a debug exit, if it did.
    pub fn guest_code(&self) -> Option<u32> {
        match self {
            Self::Success(Success::DebugExit) => Some(0),
            Self::Failed { code } => Some(*code),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success(Success::DebugExit) => write!(f, "success: debug exit 0"),
            Self::Success(Success::PowerOff) => write!(f, "success: powered off"),
            Self::Success(Success::Suspended) => write!(f, "success: suspended to RAM"),
            Self::Success(Success::Halted) => write!(f, "success: halted"),
            Self::Success(Success::Reset) => write!(f, "success: reset"),
            Self::Failed { code } => write!(f, "guest failed with code {code}"),
            Self::Died { cause, detail } => {
                write!(f, "guest died: {}", cause.words())?;
                if detail.is_empty() { Ok(()) } else { write!(f, " {detail}") }
            }
            Self::TimedOut { limit } => {
                write!(f, "guest timed out after {}", humantime::format_duration(*limit))
            }
            Self::Signal(n) => write!(f, "ended by signal {n}"),
            Self::Skipped { reason } => write!(f, "skipped: {reason}"),
            Self::Refused { message, .. } => write!(f, "{message}"),
        }
    }
}

impl Death {
    fn words(self) -> &'static str {
        match self {
            Self::TripleFault => "triple fault",
            Self::Unrunnable => "instruction KVM could not run",
            Self::Panic => "panic",
            Self::Halted => "halted for ever",
            Self::Reset => "reset asked for",
            Self::Strict => "strict mode violation",
            Self::InvalidEntry => "invalid entry state",
        }
    }
}

/// The table as text, the same in the help and in the README.
pub fn exit_code_table() -> String {
    let mut text = String::from("| code | meaning |\n|---|---|\n");
    for row in EXIT_CODES {
        let code = match (row.first, row.last) {
            (129, _) => "128+n".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let meaning = row.meaning.strip_prefix("128+n: ").unwrap_or(row.meaning);
        text.push_str(&format!("| {code} | {meaning} |\n"));
    }
    text
}

/// What a device has to end its machine with. The first verdict wins; the vCPU that
/// called stops before the guest's next instruction.
pub trait StopLine: Send + Sync {
    /// Ends the machine with `verdict`.
    fn stop(&self, verdict: Verdict);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_never_collide() {
        for pair in EXIT_CODES.windows(2) {
            assert!(pair[0].first <= pair[0].last);
            assert!(pair[0].last < pair[1].first, "{pair:?}");
        }
    }

    #[test]
    fn guest_codes_are_unchanged_up_to_62() {
        assert_eq!(Verdict::from_guest_code(0).exit_code(), 0);
        for code in 1..=62 {
            assert_eq!(u32::from(Verdict::from_guest_code(code).exit_code()), code);
        }
        for code in [63, 64, 80, 124, 255, 256, 257, 300, u32::MAX] {
            assert_eq!(Verdict::from_guest_code(code).exit_code(), 63);
            assert_eq!(Verdict::from_guest_code(code).guest_code(), Some(code));
        }
    }

    #[test]
    fn every_verdict_has_a_row_of_its_own_name() {
        let verdicts = [
            (Verdict::Success(Success::PowerOff), "success"),
            (Verdict::from_guest_code(9), "failed"),
            (Verdict::died(Death::TripleFault, ""), "triple-fault"),
            (Verdict::died(Death::InvalidEntry, ""), "invalid-entry"),
            (Verdict::TimedOut { limit: Duration::from_secs(1) }, "timeout"),
            (Verdict::Signal(15), "signal"),
            (Verdict::Signal(64), "signal"),
            (Verdict::Refused { refusal: Refusal::NoKvm, message: String::new() }, "no-kvm"),
        ];
        for (verdict, name) in verdicts {
            assert_eq!(verdict.row().name, name);
        }
    }

    #[test]
    fn qemu_convention() {
        assert_eq!(Verdict::from_guest_code(0).qemu_exit_code(), 1);
        assert_eq!(Verdict::from_guest_code(0x10).qemu_exit_code(), 0x21);
        assert_eq!(Verdict::Success(Success::PowerOff).qemu_exit_code(), 0);
        assert_eq!(Verdict::died(Death::TripleFault, "").qemu_exit_code(), 80);
    }
}

//! An instruction in a mode and a ring: what happened and what was seen, as data and in words. A part
//! of `report`.

use serde::{Deserialize, Serialize};

/// What happened to an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// It ran, and KVM did nothing for it.
    Direct,
    /// KVM emulated it without an exit of its own, as it does the code around it.
    Emulated,
    /// It trapped into KVM, which did it.
    TrappedKvm,
    /// It trapped into KVM, which had user space do it.
    TrappedUser,
    /// It raised an exception in the guest.
    Faulted,
    /// It led to other code than the audit's, which raised an exception or could not run.
    Elsewhere,
    /// It went through a gate, to the guest's handler.
    Gate,
    /// It went to the guest's kernel, in the ring `landed_in`.
    Landed,
    /// KVM could not go on.
    CouldNotRun,
    /// The guest's processor does not have it.
    Absent,
}

impl Ran {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Direct => "ran directly",
            Self::Emulated => "was emulated by KVM",
            Self::TrappedKvm => "trapped into KVM",
            Self::TrappedUser => "trapped to user space",
            Self::Faulted => "raised an exception",
            Self::Elsewhere => "led to other code, which failed",
            Self::Gate => "went through the guest's gate",
            Self::Landed => "went to the guest's kernel",
            Self::CouldNotRun => "could not run on this KVM",
            Self::Absent => "is not there",
        }
    }
}

/// Whose value a guest saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// Its own.
    Own,
    /// Neither its own nor the host's.
    Constant,
    /// The host's.
    Host,
    /// Zero, and so is the host's, if that can be read: not the guest's, but it tells nothing.
    Zero,
    /// What the host's is too, and so is the guest's own, or that is not known: nothing can be told.
    Same,
    /// The host's value cannot be read, and the guest's own is not known.
    Unknown,
}

impl Whose {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Own => "the guest's own",
            Self::Constant => "neither the guest's nor the host's",
            Self::Host => "the host's",
            Self::Zero => "a zero, which tells nothing",
            Self::Same => "as the host's is, which tells nothing",
            Self::Unknown => "not told: the host's cannot be read",
        }
    }
}

/// A value that a guest saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Of what.
    pub what: String,
    /// What it saw.
    pub value: String,
    /// What its own is.
    pub own: String,
    /// What the host shows to its own programs.
    pub host: Option<String>,
    /// So whose it is.
    pub whose: Whose,
}

/// An instruction in a mode and a ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The mode and the ring.
    pub context: String,
    /// What happened.
    pub ran: Ran,
    /// The exception that it raised, or the vector of the gate.
    pub exception: Option<String>,
    /// The ring that SYSCALL and the like came to.
    pub landed_in: Option<u8>,
    /// What the manuals say happens; `None` where they leave it to the processor.
    pub manual: Option<String>,
    /// Does that happen?
    pub as_manual: bool,
    /// Exits to KVM for one execution, where its counters tell.
    pub exits: Option<f64>,
    /// The reasons of those exits, as the kernel's trace point names them.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Instructions that KVM emulated for one execution, where its counters tell.
    pub emulations: Option<f64>,
    /// The kernel's other counters that grew with each execution.
    pub counters: Vec<String>,
    /// The kinds of exit that came to user space.
    pub user_exits: Vec<String>,
    /// Cycles of the guest's clock for one execution, less the loop around it.
    pub cycles: Option<f64>,
    /// What the guest saw.
    pub seen: Option<Seen>,
    /// What else there is to say: KVM's words, or what was missing.
    pub words: Option<String>,
}

impl Cell {
    /// Where it was tried and what happened; no more is known.
    pub fn new(context: &str, ran: Ran) -> Self {
        Self {
            context: context.to_owned(),
            ran,
            exception: None,
            landed_in: None,
            manual: None,
            as_manual: false,
            exits: None,
            reasons: vec![],
            emulations: None,
            counters: vec![],
            user_exits: vec![],
            cycles: None,
            seen: None,
            words: None,
        }
    }

    /// In a word, for a table: what happened, and behind it `!` where the guest saw the host's,
    /// `~` where it saw neither its own nor the host's, a zero, or what nobody can tell, `?` where the
    /// manuals say otherwise.
    pub fn word(&self) -> String {
        let word = match self.ran {
            Ran::Direct => "direct",
            Ran::Emulated => "emul",
            Ran::TrappedKvm => "kvm",
            Ran::TrappedUser => "user",
            Ran::Faulted => self.exception.as_deref().unwrap_or("fault"),
            Ran::Elsewhere => "lost",
            Ran::Gate => "gate",
            Ran::Landed if self.landed_in == Some(0) => "ring0",
            Ran::Landed => "ring3",
            Ran::CouldNotRun => "dies",
            Ran::Absent => "-",
        };
        let word = word.split('(').next().unwrap_or(word);
        let mark = match self.seen.as_ref().map(|seen| seen.whose) {
            Some(Whose::Host) => "!",
            Some(Whose::Constant | Whose::Zero | Whose::Unknown) => "~",
            _ if self.as_manual || matches!(self.ran, Ran::CouldNotRun | Ran::Absent) => "",
            _ => "?",
        };
        format!("{word}{mark}")
    }

    /// What happened, without what it cost and what was seen.
    pub fn event(&self) -> String {
        let mut text = self.ran.words().to_owned();
        if let Some(exception) = &self.exception {
            text += &format!(" ({exception})");
        }
        if let Some(ring) = self.landed_in {
            text += &format!(", in ring {ring}");
        }
        if !self.user_exits.is_empty() {
            text += &format!(" ({})", self.user_exits.join(", "));
        }
        text
    }

    /// In a sentence without its end.
    pub fn sentence(&self) -> String {
        let mut text = self.event();
        if let Some(exits) = self.exits.filter(|exits| *exits >= 0.5) {
            text += &format!(", {exits} {}", if exits < 1.5 { "exit" } else { "exits" });
        }
        if !self.reasons.is_empty() {
            text += &format!(" ({})", self.reasons.join(", "));
        }
        if let Some(cycles) = self.cycles {
            text += &format!(", {cycles} cycles");
        }
        if let Some(seen) = &self.seen {
            text += &format!("; saw {} {}: {}", seen.what, seen.value, seen.whose.words());
        }
        match (&self.manual, self.as_manual) {
            (Some(manual), false) => text + &format!("; by the manuals it {manual}"),
            _ => text,
        }
    }
}

//! What happened to each instruction in each mode and ring. Called by the audit; knows the table,
//! runs its rows in the lab.

use super::context::{CONTEXTS, Context};
use super::instruction::{Does, Expected, Feature, Instruction, Register, Sees, exception};
use super::lab::{End, Lab, Run};
use super::measure::{Counted, Cycles, Share, share, tenth};
use super::native::{self, Native};
use super::program::{Plan, REPEATS};
use super::report::{Cell, ContextFinding, Entered, InstructionFinding, Ran, Seen, Whose};
use super::sight::Sight;
use super::table::INSTRUCTIONS;
use super::theory::EMULATION_FAILED;
use super::{Error, ground, help, honesty};
use crate::x86::cpuid::Leaf;

/// How often something is measured; the least counts, because what disturbs it adds.
const TRIES: usize = 3;
/// How often a cost is measured.
const ROUNDS: usize = 13;
/// Without counters: what costs so many times a NOP, and so many cycles, is taken for a trap.
const TRAP_NOPS: f64 = 20.0;
const TRAP_CYCLES: f64 = 400.0;
/// A NOP that costs this many cycles is emulated, where there are no counters to tell.
const EMULATED_NOP: f64 = 200.0;

/// Why SGDT and the like trap from a ring that has no UMIP of its own.
const UMIP_OF_THE_HOST: &str = "the host's kernel has UMIP on, so that the processor raises #GP for it in ring 3, which KVM gets and answers";

/// Why SYSCALL and the like lead anywhere where a mode is entered without ring 0.
const MSRS_UNSET: &str = "; nothing had set the MSRs that it reads";

/// What happened in a mode and a ring without an instruction: the floor of the others.
pub struct Floor {
    context: Context,
    /// By KVM_SET_SREGS, because the IRET does not run.
    there: bool,
    /// KVM's words, where the mode cannot be entered.
    dead: Option<String>,
    once: Counted,
    looped: Counted,
    nop: Counted,
    /// CPUID as it shows there, where a feature of the table's stands.
    leaves: Vec<Leaf>,
}

/// Everything that the instructions are tried with.
pub struct Court<'a> {
    /// Where they are run.
    pub lab: &'a mut Lab,
    /// What the host shows to its programs.
    pub native: Option<&'a Native>,
    /// The guest's CPUID.
    pub leaves: &'a [Leaf],
    /// Has the host's kernel UMIP on?
    umip: bool,
}

impl<'a> Court<'a> {
    /// One that has looked at the host.
    pub fn new(lab: &'a mut Lab, native: Option<&'a Native>, leaves: &'a [Leaf]) -> Self {
        Self { lab, native, leaves, umip: help::cpuinfo_has("umip") == Some(true) }
    }

    /// Tries every mode and ring, and in each every one of the instructions that exists there.
    pub fn try_all(
        &mut self,
        instructions: &[Instruction],
        mut progress: impl FnMut(&str),
    ) -> Result<(Vec<ContextFinding>, Vec<InstructionFinding>), Error> {
        let mut rows: Vec<_> = instructions.iter().map(finding).collect();
        let mut contexts = vec![];
        for context in CONTEXTS {
            progress(context.name);
            let mut floor = self.floor(*context)?;
            floor.leaves = self.shown(&floor)?;
            contexts.push(floor.finding());
            for (row, finding) in instructions.iter().zip(&mut rows) {
                finding.cells.extend(self.try_one(row, &floor)?);
            }
        }
        Ok((contexts, rows))
    }

    /// The floor of a mode and a ring.
    pub fn floor(&mut self, context: Context) -> Result<Floor, Error> {
        let mut plan = Plan::empty(context);
        let mut dead = None;
        let mut run = self.lab.run(&plan)?;
        if run.end != End::Finished {
            dead = Some(words(&run.end));
            plan.there = true;
            run = self.lab.run(&plan)?;
        }
        let there = plan.there;
        let mut floor = Floor {
            context,
            there,
            dead,
            once: Counted::default(),
            looped: Counted::default(),
            nop: Counted::default(),
            leaves: vec![],
        };
        if run.end == End::Finished {
            floor.once = self.least(&plan)?;
            floor.looped = self.least(&Plan { timed: true, ..plan })?;
            floor.nop = self.least(&Plan { timed: true, bytes: &[0x90], ..plan })?;
        } else {
            floor.once.cycles = f64::NAN;
        }
        Ok(floor)
    }

    /// What CPUID shows in a mode and a ring; where it cannot run, what KVM has in its table.
    fn shown(&mut self, floor: &Floor) -> Result<Vec<Leaf>, Error> {
        if floor.never() {
            return Ok(vec![]);
        }
        let named = |leaf: &&Leaf| {
            let mut features = INSTRUCTIONS.iter().filter_map(|row| row.feature);
            features.any(|feature| feature.leaf == leaf.function)
        };
        let kept: Vec<_> = self.lab.kept_cpuid()?.iter().filter(named).copied().collect();
        let look = |leaf: &Leaf| {
            let seen = honesty::look(self.lab, floor.context, leaf, floor.there)?;
            Ok(seen.unwrap_or(*leaf))
        };
        kept.iter().map(look).collect()
    }

    fn least(&mut self, plan: &Plan<'_>) -> Result<Counted, Error> {
        let mut least = Counted::of(&self.lab.run(plan)?);
        for _ in 1..TRIES {
            least = least.least(Counted::of(&self.lab.run(plan)?));
        }
        Ok(least)
    }

    /// The least with the instruction, and the least of the loop without it that sets up what it
    /// works on; one after the other, because where code is emulated the host's other work shows.
    fn in_turn(&mut self, plan: &Plan<'_>) -> Result<(Counted, Counted), Error> {
        let empty = Plan { bytes: &[], ..*plan };
        let mut without = Counted::of(&self.lab.run(&empty)?);
        let mut with_it = Counted::of(&self.lab.run(plan)?);
        for _ in 1..TRIES {
            without = without.least(Counted::of(&self.lab.run(&empty)?));
            with_it = with_it.least(Counted::of(&self.lab.run(plan)?));
        }
        Ok((with_it, without))
    }

    /// One instruction; `None` where the mode does not have it.
    pub fn try_one(&mut self, row: &Instruction, floor: &Floor) -> Result<Option<Cell>, Error> {
        let Some(plan) = Plan::of(row, floor.context) else { return Ok(None) };
        let mut plan = Plan { there: floor.there, ..plan };
        let mut cell = Cell {
            manual: manual(row.expected(floor.context)),
            ..Cell::new(floor.context.name, Ran::CouldNotRun)
        };
        if floor.never() {
            cell.words.clone_from(&floor.dead);
            return Ok(Some(cell));
        }
        let absent = row.feature.filter(|feature| !has(&floor.leaves, *feature));
        if let Some(feature) = absent {
            cell.words = Some(format!("the guest's CPUID has no {}", feature.name));
            cell.manual = manual(row.expected_without_feature());
        }
        let before = native::tsc();
        let mut run = self.lab.run(&plan)?;
        if absent.is_some() && run.end == End::Refused {
            cell.ran = Ran::Absent; // KVM does not let CR4 switch on what is not there
            return Ok(Some(cell));
        }
        let refused = is_set_up_refused(&run.end);
        if refused {
            plan.msrs = &[];
            run = self.lab.run(&plan)?;
        }
        let aux = !refused && !floor.there;
        self.fill(&mut cell, row, floor, (&plan, &run))?;
        if absent.is_some() {
            cell.as_manual = as_manual(row.expected_without_feature(), &run.end);
        }
        let sight = self.sight((before, native::tsc()), aux, plan.cr4);
        if run.end == End::Finished {
            cell.seen = match row.sees {
                Sees::Answer => Some(answer(&run, cell.ran)),
                _ => sight.judge(row, floor.context, &run),
            };
        }
        if refused && cell.words.is_none() {
            cell.words = Some("the guest's kernel may not write the MSRs that it reads".to_owned());
        }
        Ok(Some(cell))
    }

    /// How some code runs in a loop, and what it costs: with it and without it in turn, so that
    /// what slows the host down slows both. `None` where it does not run.
    pub fn measure(
        &mut self,
        plan: &Plan<'_>,
        fresh: bool,
    ) -> Result<Option<(Ran, Cycles)>, Error> {
        let there = self.lab.run(&Plan::empty(plan.context))?.end != End::Finished;
        let plan = Plan { timed: true, there, ..*plan };
        let without = Plan { bytes: &[], ..plan };
        let (mut with_it, mut floors) = (vec![], vec![]);
        let mut share = None;
        for _ in 0..ROUNDS {
            if fresh {
                self.lab.renew();
            }
            let floor = self.lab.run(&without)?;
            let run = self.lab.run(&plan)?;
            if floor.end != End::Finished || run.end != End::Finished {
                return Ok(None);
            }
            let (run, floor) = (Counted::of(&run), Counted::of(&floor));
            with_it.push(run.cycles);
            floors.push(floor.cycles);
            share.get_or_insert_with(|| super::measure::share(&run, &floor, f64::from(REPEATS)));
        }
        let ran = share.map_or(Ran::Direct, |share| how_it_ran(&share, None));
        Ok(Some((ran, Cycles::of(&with_it, &floors))))
    }

    fn sight(&self, tsc: (u64, u64), aux: bool, cr4: u64) -> Sight<'_> {
        let guest_leaf = leaf(self.leaves, 1).unwrap_or_default();
        let host_leaf = native::cpuid(1, 0);
        Sight { native: self.native, host_leaf, guest_leaf, tsc, aux, cr4, umip: self.umip }
    }

    /// What happened, what KVM did for it, and how long it took.
    fn fill(
        &mut self,
        cell: &mut Cell,
        row: &Instruction,
        floor: &Floor,
        (plan, run): (&Plan<'_>, &Run),
    ) -> Result<(), Error> {
        let (counted, floor_counts, times) = match run.end {
            End::Died { .. } | End::Refused | End::Hung => {
                cell.ran = Ran::CouldNotRun;
                cell.words = Some(words(&run.end));
                return Ok(());
            }
            End::Elsewhere { .. } => {
                cell.as_manual = as_manual(row.expected(floor.context), &run.end);
                lost(cell, plan, &run.end);
                return Ok(());
            }
            End::Finished if !row.once => {
                let (counted, without) = self.in_turn(&Plan { timed: true, ..*plan })?;
                (counted, without, f64::from(REPEATS))
            }
            _ => {
                let again = Counted::of(&self.lab.run(plan)?);
                (Counted::of(run).least(again), floor.once.clone(), 1.0)
            }
        };
        let share = share(&counted, &floor_counts, times);
        cell.ran = match run.end {
            // It may have changed the ring, whose exits are not its own.
            End::Finished if row.once && floor.is_emulated() => Ran::Emulated,
            End::Finished => how_it_ran(&share, Some(floor)),
            End::Vector { number, .. } if row.does == Does::Gate(number) => Ran::Gate,
            End::Landed { ring } => {
                cell.landed_in = Some(ring);
                Ran::Landed
            }
            _ => Ran::Faulted,
        };
        if let End::Vector { number, error } = run.end {
            let code = error.filter(|code| *code != 0).map(|code| format!("({code:#x})"));
            cell.exception = Some(exception(number) + &code.unwrap_or_default());
        }
        // The floor's UD2 may fail there, too, so that the difference does not show it.
        let gave_up = cell.ran == Ran::Faulted && run.counts.of(EMULATION_FAILED) > Some(0);
        cell.as_manual = as_manual(row.expected(floor.context), &run.end);
        // The floor of what is done once has no part that sets MSRs up.
        let alone = times > 1.0 || plan.msrs.is_empty() || plan.there;
        cell.exits = share.exits.filter(|_| alone);
        cell.emulations = share.emulations.filter(|_| alone);
        (cell.counters, cell.user_exits, cell.cycles) = (share.counters, share.user, share.cycles);
        if gave_up && !cell.counters.iter().any(|name| name == EMULATION_FAILED) {
            cell.counters.push(EMULATION_FAILED.to_owned());
        }
        let by_umip = self.umip && help::is_of_umip(row.name);
        if cell.ran == Ran::TrappedKvm && floor.context.ring > 0 && by_umip {
            cell.words = Some(UMIP_OF_THE_HOST.to_owned());
        }
        Ok(())
    }
}

impl Floor {
    /// Can the mode not be entered at all?
    fn never(&self) -> bool {
        self.once.cycles.is_nan()
    }

    fn nop_cycles(&self) -> f64 {
        (self.nop.cycles - self.looped.cycles) / f64::from(REPEATS)
    }

    /// Does KVM emulate even a NOP?
    fn is_emulated(&self) -> bool {
        match share(&self.nop, &self.looped, f64::from(REPEATS)).emulations {
            Some(emulations) => emulations > 0.5,
            None => self.nop_cycles() > EMULATED_NOP,
        }
    }

    fn finding(&self) -> ContextFinding {
        let entered = match (self.never(), self.there) {
            (true, _) => Entered::No,
            (false, true) => Entered::ByRegisters,
            (false, false) => Entered::ByTheGuest,
        };
        ContextFinding {
            name: self.context.name.to_owned(),
            ring: self.context.ring,
            entered,
            words: self.dead.clone(),
            emulated: !self.never() && self.is_emulated(),
            nop_cycles: (!self.never()).then(|| tenth(self.nop_cycles())),
        }
    }
}

fn finding(row: &Instruction) -> InstructionFinding {
    InstructionFinding {
        name: row.name.to_owned(),
        privileged: row.is_privileged(),
        sensitive: row.sensitive.name().to_owned(),
        seventeen: row.seventeen,
        cells: vec![],
    }
}

fn manual(expected: Expected) -> Option<String> {
    Some(match expected {
        Expected::Run => "runs".to_owned(),
        Expected::Gate(vector) => format!("goes through the gate of {}", exception(vector)),
        Expected::Land => "goes to ring 0".to_owned(),
        Expected::Fault(vector) => format!("raises {}", exception(vector)),
        Expected::SomeFault => "raises an exception".to_owned(),
        Expected::Processor => return None,
    })
}

fn as_manual(expected: Expected, end: &End) -> bool {
    match (expected, end) {
        // Whatever the processor has there, it goes to ring 0.
        (Expected::Processor, End::Landed { ring }) => *ring == 0,
        (Expected::Processor, _) => true,
        (Expected::Run, end) => *end == End::Finished,
        (Expected::Gate(wanted) | Expected::Fault(wanted), End::Vector { number, .. }) => {
            wanted == *number
        }
        (Expected::SomeFault, End::Vector { .. }) => true,
        (Expected::Land, End::Landed { ring }) => *ring == 0,
        _ => false,
    }
}

/// `floor` is asked where KVM has no counters.
fn how_it_ran(share: &Share, floor: Option<&Floor>) -> Ran {
    if !share.user.is_empty() {
        return Ran::TrappedUser;
    }
    match (share.exits, share.emulations) {
        (Some(exits), _) if exits > 0.5 => Ran::TrappedKvm,
        (Some(_), Some(emulations)) if emulations > 0.5 => Ran::Emulated,
        (Some(_), _) => Ran::Direct,
        (None, _) if floor.is_some_and(Floor::is_emulated) => Ran::Emulated,
        (None, _) => match share.cycles {
            Some(cycles)
                if cycles > TRAP_CYCLES.max(floor.map_or(0.0, Floor::nop_cycles) * TRAP_NOPS) =>
            {
                Ran::TrappedKvm
            }
            _ => Ran::Direct,
        },
    }
}

/// A hypercall that this KVM did not hear of was answered by another hypervisor below.
fn answer(run: &Run, ran: Ran) -> Seen {
    let past = ran == Ran::Direct;
    Seen {
        what: "a hypervisor's answer".to_owned(),
        value: format!("{:#x}", run.regs.rax),
        own: "this KVM's".to_owned(),
        host: None,
        whose: if past { Whose::Host } else { Whose::Own },
    }
}

/// What happened is the other code's, and so is what it cost.
fn lost(cell: &mut Cell, plan: &Plan<'_>, end: &End) {
    let unset = if plan.there && !plan.msrs.is_empty() { MSRS_UNSET } else { "" };
    let absent = cell.words.take().map(|words| words + "; ").unwrap_or_default();
    cell.ran = Ran::Elsewhere;
    cell.words = Some(absent + &words(end) + unset);
}

/// Did the part in ring 0 that sets MSRs up get a fault?
fn is_set_up_refused(end: &End) -> bool {
    matches!(end, End::Elsewhere { rip, .. } if (ground::LAUNCH..ground::PROBE).contains(rip))
}

fn words(end: &End) -> String {
    match end {
        End::Died { words } => words.clone(),
        End::Refused => "KVM refuses the state that it needs".to_owned(),
        End::Hung => "KVM_RUN does not come back from it by itself".to_owned(),
        End::Vector { number, .. } => format!("{} on the way there", exception(*number)),
        End::Elsewhere { words, rip } => format!("the code at {rip:#x} ended it: {words}"),
        _ => String::new(),
    }
}

/// A leaf's sub-leaf 0.
pub fn leaf(leaves: &[Leaf], function: u32) -> Option<Leaf> {
    leaves.iter().find(|leaf| leaf.function == function && leaf.index == 0).copied()
}

/// Does CPUID show the feature?
pub fn has(leaves: &[Leaf], feature: Feature) -> bool {
    let key = (feature.leaf, feature.sub_leaf);
    leaves.iter().find(|leaf| (leaf.function, leaf.index) == key).is_some_and(|leaf| {
        let register = match feature.register {
            Register::A => leaf.eax,
            Register::B => leaf.ebx,
            Register::C => leaf.ecx,
            Register::D => leaf.edx,
        };
        register >> feature.bit & 1 != 0
    })
}

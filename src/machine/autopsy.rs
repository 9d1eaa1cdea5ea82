//! The autopsy of a machine: who is asked for what is left of its guest.

use std::path::Path;
use std::time::Duration;

use super::instruction::{instruction, panic_write};
use super::second_run::{self, Limits, Second, second_run};
use super::whole::check_regular;
use super::{Error, Machine, core, names, nothing_ran};
use crate::config::AutopsyLevel;
use crate::inspect::{
    Autopsy, Cpu, Ending, Functions, Registers, Source, Subject, Symbols, is_end, kvm_exit,
    kvm_words,
};
use crate::kvm::{self, Backend, Exit, ExitKind, RunState};
use crate::mem::GuestMemory;
use crate::vcpu::{Control, Parking, Record, RunLoop};
use crate::verdict::{Death, Verdict};

/// A first run up to this long is short enough for a second that nobody asked for.
const SHORT: Duration = Duration::from_secs(2);

/// What there is to say of AMD-V, where a shutdown ends in INIT.
const LOST: &str =
    "this KVM loses the registers in a triple fault (AMD-V): these are the general registers";

/// What there is to say where source lines could be expected.
const COMPRESSED: &str = "no source lines of a file whose debug sections are compressed: objcopy --decompress-debug-sections makes one that has them";

/// What there is to say where time was up too soon.
const BEFORE_START: &str =
    "the guest had not run an instruction: these are the registers that it starts with";

/// Exits that it shows of each.
const EXITS: usize = 8;

impl Machine {
    /// Why the guest died; `None` for a guest that did not, or that still runs, and where the
    /// description asks for no autopsy. The first call makes it, which may take as long as a
    /// second run of the guest.
    pub fn autopsy(&mut self) -> Option<&Autopsy> {
        if self.autopsy.is_none() {
            self.autopsy = self.examine();
        }
        self.autopsy.as_ref()
    }

    fn examine(&mut self) -> Option<Autopsy> {
        let (verdict, _) = self.ended.as_ref()?;
        let ending = ending(verdict).filter(|_| self.config.autopsy != AutopsyLevel::Off)?;
        let mut notes = self.evidence()?.notes.clone();
        let (files, complaints) = names::symbol_files(&self.config);
        notes.extend(complaints);
        let mut symbols = Symbols::new();
        symbols.add(&self.files.image, names::image_offset(&self.files.image, &self.loaded));
        for (bytes, offset) in &files {
            symbols.add(bytes, *offset);
        }
        if symbols.are_compressed() {
            notes.push(COMPRESSED.to_owned());
        }
        let Evidence { source, memory, cpus, never_started, .. } = self.evidence.as_ref()?;
        let subject = Subject {
            ending: held(restarted(ending, self.restarts, &mut notes), &self.control),
            backend: Backend::detect(),
            memory,
            symbols: &symbols,
            source: *source,
            notes,
            cpus: cpus.clone(),
            never_started: never_started.clone(),
            guarded: &self.incarnation.guarded,
        };
        Some(Autopsy::perform(&subject))
    }

    /// Writes the memory and the registers of a guest that died to a core file, which gdb
    /// opens; false for a guest that did not die.
    ///
    /// # Errors
    /// Those of the file, which must be a regular one; [`Self::check_core`] tells of most of them
    /// before there is a guest.
    pub fn write_core(&mut self, path: &Path) -> Result<bool, Error> {
        if self.evidence().is_none() {
            return Ok(false);
        }
        let Some(Evidence { memory, cpus, .. }) = &self.evidence else { return Ok(false) };
        let (symbols, _) = names::symbol_files(&self.config);
        let files =
            [&self.files.image[..]].into_iter().chain(symbols.iter().map(|(it, _)| &it[..]));
        let doing = format!("write the core {}", path.display());
        core::write(path, cpus, memory, files).map_err(|source| Error::Host { doing, source })?;
        Ok(true)
    }

    /// Can a core be written there?
    ///
    /// # Errors
    /// Those of the file.
    pub fn check_core(path: &Path) -> Result<(), Error> {
        let doing = format!("write the core {}", path.display());
        check_regular(path).map_err(|source| Error::Host { doing, source })
    }

    /// What there is of a guest that died, looked for once.
    fn evidence(&mut self) -> Option<&Evidence> {
        let (verdict, wall) = self.ended.as_ref()?;
        let wall = *wall;
        ending(verdict)?;
        if self.evidence.is_none() {
            self.evidence = Some(self.look(wall));
        }
        self.evidence.as_ref()
    }

    /// What is left of the guest, or of its second run.
    fn look(&mut self, wall: Duration) -> Evidence {
        let memory = self.incarnation.memory.clone();
        let Self { incarnation, config, files, loaded, ended, .. } = self;
        let verdict = ended.as_ref().map_or_else(nothing_ran, |(verdict, _)| verdict.clone());
        let functions = || names::functions(config, &files.image, loaded);
        let (waiting, mut running): (Vec<_>, Vec<_>) =
            incarnation.loops.iter_mut().partition(|it| never_started(it));
        let waiting = waiting.iter().map(|it| it.vcpu.id()).collect();
        let source = match verdict {
            Verdict::TimedOut { .. } if has_not_started(&mut running) => Source::BeforeStart,
            _ => Source::End,
        };
        // Of those that ran when the time was up, those that still do come first.
        let timed_out = matches!(verdict, Verdict::TimedOut { .. });
        let halts = |it: &mut &mut RunLoop| it.vcpu.run_state().is_ok_and(RunState::is_halted);
        let halted = running
            .iter_mut()
            .filter(|_| timed_out)
            .filter_map(|it| halts(it).then(|| it.vcpu.id()));
        let halted: Vec<_> = halted.collect();
        let asked = running.into_iter().map(|it| ask(it, &verdict, &memory, functions));
        let (mut cpus, mut notes) = match asked.collect::<Result<Vec<_>, _>>() {
            Ok(cpus) => (cpus, Vec::new()),
            Err(e) => (Vec::new(), vec![format!("no processor's state: {}", super::chain(&e))]),
        };
        if let Some(first) = cpus.iter_mut().find(|cpu| cpu.id == 0) {
            first.pic = incarnation.vm.pic_vectors().unwrap_or_default();
        }
        notes.extend((source == Source::BeforeStart).then(|| BEFORE_START.to_owned()));
        cpus.sort_by_key(|cpu| (!cpu.died, halted.contains(&cpu.id)));
        let mut found = Evidence { source, memory, notes, cpus, never_started: waiting };
        let Some(lost) = found.cpus.iter().position(is_general) else { return found };
        found.source = if self.had_exits() { Source::LastExit } else { Source::Start };
        match self.limits(wall) {
            Err(why) => found.notes.push(format!("{}; {why}", lost_words(found.source))),
            Ok(limits) => self.look_again(&mut found, lost, limits),
        }
        found
    }

    /// How long a second run may take, or why there is none.
    fn limits(&self, wall: Duration) -> Result<Limits, String> {
        let words = humantime::format_duration(Duration::from_millis(wall.as_millis() as u64));
        match self.config.autopsy {
            _ if self.config.cpus > 1 => {
                Err("no second run: several processors do not repeat what they did".to_owned())
            }
            _ if self.restarts > 0 => Err("no second run: the guest had started again".to_owned()),
            AutopsyLevel::Off | AutopsyLevel::Fast => {
                Err("--autopsy=full runs the guest again to find them".to_owned())
            }
            AutopsyLevel::Auto if wall > SHORT => Err(format!(
                "no second run, because the first took {words}: --autopsy=full makes one"
            )),
            AutopsyLevel::Auto => Ok(Limits { time: wall * 2 + 2 * SHORT, steps: 1 << 20 }),
            AutopsyLevel::Full => Ok(Limits { time: wall * 3 + 30 * SHORT, steps: 1 << 26 }),
        }
    }

    /// Had the guest an exit of its own before the one that ended it?
    fn had_exits(&self) -> bool {
        self.counts.exits_of(ExitKind::is_guests_own).next().is_some()
    }

    fn look_again(&self, found: &mut Evidence, lost: usize, limits: Limits) {
        match second_run(self, &found.cpus[lost], limits) {
            Err(e) => found.notes.extend([lost_words(found.source), second_run::failed(&e)]),
            Ok(Second { state: None, notes, .. }) => {
                found.notes.push(lost_words(found.source));
                found.notes.extend(notes);
            }
            Ok(Second { state: Some(state), local_apic, same_way, memory, notes }) => {
                found.cpus[lost].registers = Registers::Whole(state);
                found.cpus[lost].local_apic = local_apic;
                found.source = if same_way { Source::SecondRun } else { Source::OtherWay };
                found.memory = memory;
                found.notes.extend(notes);
            }
        }
    }
}

fn lost_words(source: Source) -> String {
    match source {
        Source::Start => format!("{LOST} that it started with: it had no exit before"),
        _ => format!("{LOST} of the last exit before it"),
    }
}

/// What an autopsy is made from, before it has names.
pub(super) struct Evidence {
    source: Source,
    memory: GuestMemory,
    notes: Vec<String>,
    cpus: Vec<Cpu>,
    never_started: Vec<u32>,
}

/// Has it run nothing, because no other vCPU has started it?
fn never_started(it: &RunLoop) -> bool {
    let nothing = |record: &Record| record.kind == ExitKind::Interrupted;
    it.vcpu.waits_for_start() && it.recorder.tail(usize::MAX).iter().all(nothing)
}

/// Had no vCPU run an instruction when the time was up? KVM may not have their registers yet.
fn has_not_started(loops: &mut [&mut RunLoop]) -> bool {
    loops.iter_mut().all(|it| matches!(it.vcpu.settle(), Ok(true)))
}

/// What a guest that was restarted has to have said of it.
fn restarted(ending: Ending, restarts: u64, notes: &mut Vec<String>) -> Ending {
    let resets = match restarts {
        0 => return ending,
        1 => "one reset".to_owned(),
        n => format!("{n} resets"),
    };
    notes.push(format!("the guest was started again, after {resets}: this is its last start"));
    match ending {
        Ending::TimedOut(limit) => Ending::TimedOut(format!("{limit} and {resets}")),
        other => other,
    }
}

/// A guest that a debugger held, or a pause, did not use its time.
fn held(ending: Ending, control: &Control) -> Ending {
    let held = control.parking().is_some_and(Parking::was_held);
    match ending {
        Ending::TimedOut(limit) if held => {
            Ending::TimedOut(format!("{limit} (a debugger or a pause held it)"))
        }
        other => other,
    }
}

fn is_general(cpu: &Cpu) -> bool {
    matches!(cpu.registers, Registers::General { .. })
}

/// What is left of a vCPU.
fn ask(
    it: &mut RunLoop,
    verdict: &Verdict,
    memory: &GuestMemory,
    functions: impl FnOnce() -> Functions,
) -> Result<Cpu, kvm::Error> {
    let exit = it.vcpu.last_exit();
    let (ended, kvm, kvm_exit) = (is_end(&exit), kvm_words(&exit), kvm_exit(&exit));
    let lost = exit == Exit::Shutdown;
    let registers = if lost && it.vcpu.is_reinitialised() {
        let (regs, rflags) = it.vcpu.previous_registers();
        Registers::General { regs, rflags }
    } else {
        Registers::Whole(it.vcpu.state()?)
    };
    let instruction = match &registers {
        Registers::Whole(state) => instruction(it, verdict, memory, state, functions),
        Registers::General { .. } => None,
    };
    let vcpu = &it.vcpu;
    Ok(Cpu {
        id: vcpu.id(),
        died: ended || it.violation.is_some() || panic_write(it, verdict).is_some(),
        registers,
        instruction,
        kvm,
        kvm_exit,
        local_apic: vcpu.local_apic()?,
        pic: Vec::new(),
        events: vcpu.events()?,
        debug_registers: vcpu.debug_registers()?,
        exits: it.recorder.tail(EXITS),
    })
}

/// Which endings have an autopsy. A reset is something that a guest asks for.
fn ending(verdict: &Verdict) -> Option<Ending> {
    Some(match verdict {
        Verdict::Died { cause, detail } => match cause {
            Death::TripleFault => Ending::TripleFault,
            Death::Unrunnable => Ending::Unrunnable,
            Death::InvalidEntry => Ending::InvalidEntry,
            Death::Panic => Ending::Panic(detail.clone()),
            Death::Halted => Ending::Halted,
            Death::Strict => Ending::Strict(detail.clone()),
            Death::Reset => return None,
        },
        Verdict::TimedOut { limit } => {
            Ending::TimedOut(humantime::format_duration(*limit).to_string())
        }
        _ => return None,
    })
}

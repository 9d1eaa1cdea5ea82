//! The autopsy of a machine: who is asked for what is left of its guest.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::second_run::{self, Limits, Second, second_run};
use super::{Error, Machine, core};
use crate::config::AutopsyLevel;
use crate::inspect::{
    Autopsy, Cpu, Ending, Registers, Source, Subject, Symbols, is_end, kvm_words,
};
use crate::kvm::{self, Exit};
use crate::mem::GuestMemory;
use crate::vcpu::RunLoop;
use crate::verdict::{Death, Verdict};

/// A first run up to this long is short enough for a second that nobody asked for.
const SHORT: Duration = Duration::from_secs(2);

/// What there is to say of AMD-V, where a shutdown ends in INIT.
const LOST: &str = "this KVM loses the registers in a triple fault (AMD-V): these are the general registers of the last exit before it";

/// Exits that it shows of each.
const EXITS: usize = 8;

/// vCPUs that the autopsy describes.
const MOST_CPUS: usize = 16;

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
        let files = self.symbol_files(&mut notes);
        let mut symbols = Symbols::new();
        symbols.add(&self.files.image, 0);
        for (bytes, offset) in &files {
            symbols.add(bytes, *offset);
        }
        let Evidence { source, memory, cpus, .. } = self.evidence.as_ref()?;
        let (source, cpus) = (*source, cpus.clone());
        let subject = Subject { ending, memory, symbols: &symbols, source, notes, cpus };
        Some(Autopsy::perform(&subject))
    }

    /// Writes the memory and the registers of a guest that died to a core file, which gdb
    /// opens; false for a guest that did not die.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write_core(&mut self, path: &Path) -> Result<bool, Error> {
        let Some(Evidence { memory, cpus, .. }) = self.evidence() else { return Ok(false) };
        let doing = format!("write the core {}", path.display());
        core::write(path, cpus, memory).map_err(|source| Error::Host { doing, source })?;
        Ok(true)
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
        let asked = self.incarnation.loops.iter_mut().take(MOST_CPUS).map(ask);
        let mut found = match asked.collect() {
            Ok(cpus) => Evidence { source: Source::End, memory, notes: Vec::new(), cpus },
            Err(e) => {
                let notes = vec![format!("no processor's state: {}", super::chain(&e))];
                Evidence { source: Source::End, memory, notes, cpus: Vec::new() }
            }
        };
        let Some(lost) = found.cpus.iter().position(is_general) else { return found };
        found.source = Source::LastExit;
        match self.limits(wall) {
            Err(why) => found.notes.push(format!("{LOST}; {why}")),
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

    fn look_again(&self, found: &mut Evidence, lost: usize, limits: Limits) {
        match second_run(self, &found.cpus[lost], limits) {
            Err(e) => found.notes.extend([LOST.to_owned(), second_run::failed(&e)]),
            Ok(Second { state: None, notes, .. }) => {
                found.notes.push(LOST.to_owned());
                found.notes.extend(notes);
            }
            Ok(Second { state: Some(state), memory, notes }) => {
                found.cpus[lost].registers = Registers::Whole(state);
                found.source = Source::SecondRun;
                found.memory = memory;
                found.notes.extend(notes);
            }
        }
    }

    /// The symbol files' bytes, each with its offset; what is wrong with one is noted.
    fn symbol_files(&self, notes: &mut Vec<String>) -> Vec<(Vec<u8>, u64)> {
        let mut files = Vec::new();
        for file in &self.config.symbols {
            match fs::read(&file.path) {
                Ok(bytes) if Symbols::new().add(&bytes, 0) => files.push((bytes, file.offset)),
                Ok(_) => notes.push(format!("{} is no ELF file: no symbols", file.path.display())),
                Err(e) => notes.push(format!("no symbols from {}: {e}", file.path.display())),
            }
        }
        files
    }
}

/// What an autopsy is made from, before it has names.
pub(super) struct Evidence {
    source: Source,
    memory: GuestMemory,
    notes: Vec<String>,
    cpus: Vec<Cpu>,
}

fn is_general(cpu: &Cpu) -> bool {
    matches!(cpu.registers, Registers::General { .. })
}

/// What is left of a vCPU.
fn ask(it: &mut RunLoop) -> Result<Cpu, kvm::Error> {
    let vcpu = &mut it.vcpu;
    let exit = vcpu.last_exit();
    let (died, kvm) = (is_end(&exit), kvm_words(&exit));
    let lost = exit == Exit::Shutdown;
    let lost = lost && vcpu.is_reinitialised();
    Ok(Cpu {
        id: vcpu.id(),
        died,
        registers: if lost {
            let (regs, rflags) = vcpu.previous_registers();
            Registers::General { regs, rflags }
        } else {
            Registers::Whole(vcpu.state()?)
        },
        physical_bits: vcpu.physical_bits()?,
        kvm,
        local_apic: vcpu.local_apic()?,
        events: vcpu.events()?,
        exits: it.recorder.tail(EXITS).iter().map(|it| it.to_string().trim().to_owned()).collect(),
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

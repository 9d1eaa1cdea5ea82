//! The autopsy of a machine: who is asked for what is left of its guest.

use std::fs;

use super::Machine;
use crate::config::AutopsyLevel;
use crate::inspect::{
    Autopsy, Cpu, Ending, Registers, Source, Subject, Symbols, is_end, kvm_words,
};
use crate::kvm;
use crate::vcpu::RunLoop;
use crate::verdict::{Death, Verdict};

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
        let (verdict, _) = self.ended.clone()?;
        let ending = ending(&verdict).filter(|_| self.config.autopsy != AutopsyLevel::Off)?;
        let mut notes = Vec::new();
        let cpus: Vec<_> = self.incarnation.loops.iter_mut().take(MOST_CPUS).map(ask).collect();
        let cpus = match cpus.into_iter().collect() {
            Ok(cpus) => cpus,
            Err(e) => {
                notes.push(format!("no processor's state: {}", super::chain(&e)));
                Vec::new()
            }
        };
        let source = Source::End;
        let files = self.symbol_files(&mut notes);
        let mut symbols = Symbols::new();
        symbols.add(&self.files.image, 0);
        for (bytes, offset) in &files {
            symbols.add(bytes, *offset);
        }
        let memory = &self.incarnation.memory;
        let subject = Subject { ending, memory, symbols: &symbols, source, notes, cpus };
        Some(Autopsy::perform(&subject))
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

/// What is left of a vCPU.
fn ask(it: &mut RunLoop) -> Result<Cpu, kvm::Error> {
    let vcpu = &mut it.vcpu;
    let exit = vcpu.last_exit();
    let (died, kvm) = (is_end(&exit), kvm_words(&exit));
    Ok(Cpu {
        id: vcpu.id(),
        died,
        registers: Registers::Whole(vcpu.state()?),
        physical_bits: vcpu.physical_bits()?,
        kvm,
        local_apic: vcpu.local_apic()?,
        events: vcpu.events()?,
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

//! What a KVM's debug exits can do, found out by trying: a few instructions in a VM of their
//! own for each. Called once a debug session, before the machine runs; no list of backends
//! could say it, for emulations of the same hardware differ.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::irq::Irqchip;
use crate::kvm::{Debug, Exit, HardwareBreakpoint, Kvm, SupportedCpuid, Vcpu, Vm, WatchKind};
use crate::machine::Error;
use crate::mem::{self, Bytes, GuestAddress, GuestMemory};
use crate::vcpu::limited;
use crate::x86::cpuid::Policy;
use crate::x86::{CpuInit, Model};

/// What this KVM's debug exits can and cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// INT3 comes out as a debug exit.
    pub int3: bool,
    /// Debug registers stop execution.
    pub hardware: bool,
    /// Debug registers stop execution in ring 3.
    pub hardware_in_ring3: bool,
    /// Data watchpoints fire.
    pub watch: bool,
    /// Instructions can be single-stepped.
    pub step: bool,
    /// Ring 3 can be single-stepped.
    pub step_in_ring3: bool,
}

/// How long a probe may run: its few instructions take milliseconds on the slowest machine,
/// but a busy one may not run them at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Guest-physical, and linear too.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
const MEMORY: u64 = 2 << 20;

/// Page table entries for all rings (Intel SDM Vol. 3A 5.5): present, writable, user.
const OPEN: u64 = 0b111;
const LARGE: u64 = 1 << 7;

/// HLT: an exit in ring 0, a fault in ring 3, and as there is no IDT the end. The probe's
/// debug exit has come before, or it does not come.
const HLT: u8 = 0xF4;
const NOP: u8 = 0x90;
const INT3: u8 = 0xCC;
/// `mov %rax, (%rdi)`.
const STORE: [u8; 3] = [0x48, 0x89, 0x07];

/// One attempt: instructions, what is debugged of them, and where the debug exit is to come.
struct Probe {
    code: &'static [u8],
    debug: Debug,
    pc: u64,
}

fn register(address: u64, len: u8, kind: WatchKind) -> Debug {
    let first = Some(HardwareBreakpoint { address, len, kind });
    Debug { hardware: [first, None, None, None], ..Debug::default() }
}

fn step() -> Probe {
    let debug = Debug { single_step: true, block_interrupts: true, ..Debug::default() };
    Probe { code: &[NOP, NOP, HLT], debug, pc: CODE + 1 }
}

fn hardware() -> Probe {
    let debug = register(CODE + 2, 1, WatchKind::Execute);
    Probe { code: &[NOP, NOP, NOP, HLT], debug, pc: CODE + 2 }
}

fn int3() -> Probe {
    let debug = Debug { software_breakpoints: true, ..Debug::default() };
    Probe { code: &[NOP, INT3, HLT], debug, pc: CODE + 1 }
}

fn watch() -> Probe {
    const CODE_BYTES: [u8; 5] = [STORE[0], STORE[1], STORE[2], NOP, HLT];
    let debug = register(DATA, 8, WatchKind::Write);
    Probe { code: &CODE_BYTES, debug, pc: CODE + STORE.len() as u64 }
}

impl Limits {
    /// Tries all on the KVM at `path`, each on a vCPU of its own: one that died of an attempt
    /// serves no other.
    pub(super) fn probe(path: &Path) -> Result<Self, Error> {
        let kvm = Kvm::open(path)?;
        let memory = mem::create(MEMORY)?;
        page_tables(&memory).map_err(|e| host(io::Error::other(e)))?;
        let vm = Vm::new(&kvm, &memory, Irqchip::None, &[])?;
        let cpuid = SupportedCpuid::ask(&kvm)?;
        let mut id = 0..;
        let mut works = |probe: Probe, ring: u8| {
            let vcpu = vm.create_vcpu(id.next().unwrap_or(0))?;
            let (apic_id, cpus) = (vcpu.id(), 1);
            let policy = Policy { apic_id, cpus, local_apic: false, tsc_deadline: false };
            vcpu.set_cpuid(&cpuid, &policy, &Model::default())?; // KVM enters no 64-bit mode that it does not have
            attempt(vcpu, &memory, &probe, ring)
        };
        Ok(Self {
            int3: works(int3(), 0)? && works(int3(), 3)?,
            hardware: works(hardware(), 0)?,
            hardware_in_ring3: works(hardware(), 3)?,
            watch: works(watch(), 0)? && works(watch(), 3)?,
            step: works(step(), 0)?,
            step_in_ring3: works(step(), 3)?,
        })
    }
}

fn host(source: io::Error) -> Error {
    Error::Host { doing: "find out what this KVM can debug".to_owned(), source }
}

/// The memory identity-mapped, for all rings.
fn page_tables(memory: &GuestMemory) -> Result<(), mem::GuestMemoryError> {
    memory.write_obj(PDPT | OPEN, GuestAddress(PML4))?;
    memory.write_obj(DIRECTORY | OPEN, GuestAddress(PDPT))?;
    memory.write_obj(OPEN | LARGE, GuestAddress(DIRECTORY))
}

fn attempt(mut vcpu: Vcpu, memory: &GuestMemory, probe: &Probe, ring: u8) -> Result<bool, Error> {
    let written = memory.write_slice(probe.code, GuestAddress(CODE));
    written.map_err(|e| host(io::Error::other(e)))?;
    vcpu.set_entry(&entry(ring));
    let ran = limited(&mut vcpu, PATIENCE, |it| {
        // A KVM that refuses says itself that it cannot.
        let exit = it.debug(&probe.debug).ok().and_then(|()| it.run());
        log::debug!("debugging {:x?} in ring {ring}: {exit:x?}", probe.code);
        match exit {
            Some((_, Exit::Debug { pc, .. })) => Ok(pc == probe.pc),
            // It has not tried.
            Some((_, Exit::Failed { errno })) => Err(io::Error::from_raw_os_error(errno)),
            Some((_, Exit::FailEntry { reason })) => {
                Err(io::Error::other(format!("hardware entry failure reason {reason:#x}")))
            }
            _ => Ok(false),
        }
    });
    ran.and_then(|answer| answer).map_err(host)
}

/// 64-bit mode, which is where a KVM may run ring 3 in another way than ring 0.
fn entry(ring: u8) -> CpuInit {
    const CODE_SELECTOR: u16 = 8;
    const DATA_SELECTOR: u16 = 16;
    let rpl = u16::from(ring);
    let mut cpu = CpuInit::long(CODE, PML4, CODE_SELECTOR | rpl, DATA_SELECTOR | rpl);
    for segment in [&mut cpu.cs, &mut cpu.data, &mut cpu.ss] {
        segment.dpl = ring;
    }
    cpu.regs.rdi = DATA;
    cpu.regs.rsp = DATA + mem::PAGE_SIZE;
    cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_is_not_there_is_an_error() {
        assert!(Limits::probe(Path::new("/nowhere/kvm")).is_err());
    }

    #[test]
    fn probes_expect_their_exit_inside_their_code() {
        for probe in [step(), hardware(), int3(), watch()] {
            assert!((CODE..CODE + probe.code.len() as u64).contains(&probe.pc));
            assert_eq!(probe.code.last(), Some(&HLT));
        }
    }
}

//! Which access to guarded memory the instruction at RIP cannot go on without.
//!
//! KVM does most accesses to memory that a slot lacks, or has read-only, by an exit. Others it can
//! do in memory alone: those of SGDT, SIDT, FXSAVE and of a segment's descriptor (Linux
//! arch/x86/kvm/emulate.c: `segmented_write_std`, `write_segment_descriptor`). It gives up on them,
//! or enters the guest again and again. Called by `machine` for strict mode.

use iced_x86::{Instruction, InstructionInfoFactory, MemorySize, OpAccess, UsedMemory};

use super::fault::Standing;
use super::walk::{Access, AddressSpace};
use super::{descriptor, operands, special};
use crate::mem::GuestMemory;
use crate::x86::{CpuState, Mode};

/// An access of an instruction's to guarded memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Is it a write?
    pub write: bool,
    /// Guest-physical.
    pub address: u64,
    /// What is moved, in words.
    pub what: String,
}

/// The first access of the instruction at RIP to memory that `guards` (an address, and whether it
/// is written) says is guarded; `None` where there is none, or the instruction faults before it.
pub fn guarded_access(
    memory: &GuestMemory,
    cpu: &CpuState,
    guards: impl Fn(u64, bool) -> bool,
) -> Option<Touch> {
    let space = AddressSpace::new(memory, cpu);
    let at = Standing::new(space, cpu);
    let it = at.instruction().filter(|it| !it.is_invalid())?;
    if at.memory(&it).is_some() {
        return None;
    }
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(&it).used_memory().to_vec();
    let operand = used.iter().find_map(|used| operand(&at, &it, used, &guards));
    operand.or_else(|| segment(&at, &it, &guards))
}

fn operand(
    at: &Standing<'_>,
    it: &Instruction,
    used: &UsedMemory,
    guards: impl Fn(u64, bool) -> bool,
) -> Option<Touch> {
    let write = match used.access() {
        OpAccess::None | OpAccess::NoMemAccess => return None,
        OpAccess::Read | OpAccess::CondRead => false,
        _ => true,
    };
    if operands::is_rep_done(it, at.cpu) {
        return None;
    }
    let linear = operands::linear(used, at.cpu, operands::bit_offset(it, at.cpu))?;
    let (size, what) = match used.memory_size() {
        MemorySize::Unknown => (1, "some bytes".to_owned()),
        size if size.size() <= 1 => (1, "1 byte".to_owned()),
        size => (size.size() as u64, format!("{} bytes", size.size())),
    };
    let ends = [linear, linear.wrapping_add(size - 1)];
    let access = if write { Access::Write } else { Access::Read };
    let address = ends.into_iter().find_map(|linear| {
        let physical = at.space.translate(linear, access, at.user()).ok()?;
        guards(physical, write).then_some(physical)
    })?;
    Some(Touch { write, address, what })
}

/// The descriptor of a segment that it loads: it is read, and its accessed bit is set.
fn segment(
    at: &Standing<'_>,
    it: &Instruction,
    guards: impl Fn(u64, bool) -> bool,
) -> Option<Touch> {
    if at.cpu.mode() == Mode::Real {
        return None;
    }
    let linear = descriptor::address(at.cpu, special::selector(at, it)?).ok()?;
    let place =
        |offset: u64| at.space.translate(linear.wrapping_add(offset), Access::Read, false).ok();
    if let Some(address) = place(0).filter(|it| guards(*it, false)) {
        return Some(Touch { write: false, address, what: "a segment's descriptor".to_owned() });
    }
    let descriptor = descriptor::read(&at.space, linear).map(descriptor::Descriptor).ok()?;
    // The accessed bit is the lowest of the type, in the sixth byte (Intel SDM Vol. 3A 3.4.5.1).
    let sets = descriptor.is_segment() && descriptor.present() && descriptor.kind() & 1 == 0;
    let address = place(5).filter(|it| sets && guards(*it, true))?;
    Some(Touch { write: true, address, what: "a descriptor's accessed bit".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::watch::testing::cpu;
    use crate::mem::{self, Bytes, GuestAddress};
    use crate::x86::{CpuInit, DescriptorTable, Segment};

    const CODE: u64 = 0x8000;
    const GUARDED: u64 = 0x5000;

    /// What `code` does to the page at GUARDED, where a descriptor of type `kind` is the third.
    fn touch(code: &[u8], kind: u64, only_writes: bool) -> Option<(bool, u64)> {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        let descriptor = Segment::data32(16).descriptor() & !(0xF << 40) | kind << 40;
        memory.write_obj(descriptor, GuestAddress(GUARDED + 16)).unwrap();
        let mut cpu = cpu(CpuInit::protected(CODE as u32, 8, 16), CODE, 0);
        cpu.gdt = DescriptorTable { base: GUARDED, limit: 23 };
        cpu.regs.rax = 16;
        cpu.regs.rdi = GUARDED + 8;
        let guards = |address, write| address & !0xFFF == GUARDED && (write || !only_writes);
        guarded_access(&memory, &cpu, guards).map(|it| (it.write, it.address))
    }

    #[test]
    fn operands_and_descriptors_are_found_in_guarded_memory() {
        let (sidt, fxsave): (&[u8], &[u8]) = (&[0x0F, 0x01, 0x0F], &[0x0F, 0xAE, 0x07]);
        assert_eq!(touch(sidt, 2, true), Some((true, GUARDED + 8)));
        assert_eq!(touch(fxsave, 2, true), None); // it is not aligned: #GP
        // mov eax, [edi]: a read is no matter of a page that may not be written.
        assert_eq!(touch(&[0x8B, 0x07], 2, true), None);
        assert_eq!(touch(&[0x8B, 0x07], 2, false), Some((false, GUARDED + 8)));
        // mov ds, ax: sets the accessed bit, once.
        let load = [0x8E, 0xD8];
        assert_eq!(touch(&load, 2, true), Some((true, GUARDED + 21)));
        assert_eq!(touch(&load, 3, true), None);
        assert_eq!(touch(&load, 3, false), Some((false, GUARDED + 16)));
        assert_eq!(touch(&[0x90], 2, false), None);
    }
}

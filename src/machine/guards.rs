//! What strict mode's guarded memory does to the guest's instructions, beyond what exits tell.
//! Called by the run loop, off the exit path.

use crate::inspect::walk::AddressSpace;
use crate::inspect::{Touch, guarded_access};
use crate::kvm::{Guard, Guarded, Vcpu};
use crate::mem::{Bytes, GuestAddress, GuestMemory};
use crate::vcpu::{self, Blocked, Record};
use crate::x86::CpuState;

/// VMCALL and VMMCALL. KVM takes the other vendor's for a hypercall too, and writes its own over it;
/// where it emulates its own, over that as well (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).
const HYPERCALLS: [[u8; 3]; 2] = [[0x0F, 0x01, 0xC1], [0x0F, 0x01, 0xD9]];

/// The guest's memory, and the parts of it that are guarded.
#[derive(Debug)]
pub(super) struct Guards {
    pub(super) memory: GuestMemory,
    pub(super) guarded: Vec<Guarded>,
}

impl vcpu::Guards for Guards {
    fn patches(&self, write: &Record, vcpu: &Vcpu) -> bool {
        vcpu.state().is_ok_and(|cpu| patch(&self.memory, write, &cpu))
    }

    fn blocked(&self, vcpu: &Vcpu) -> Option<Blocked> {
        let forbidden = |address: u64, write: bool| {
            let holds = |it: &&Guarded| (it.range.start..it.range.end).contains(&address);
            let guard = self.guarded.iter().find(holds).map(|it| it.guard);
            guard == Some(Guard::Hole) || write && guard == Some(Guard::ReadOnly)
        };
        let touch = guarded_access(&self.memory, &vcpu.state().ok()?, forbidden);
        touch.map(|Touch { write, address, what }| Blocked { write, address, what })
    }
}

/// Does the write of a hypercall over one, at RIP; false where it is not one. Across
/// a page's end KVM makes two of it.
fn patch(memory: &GuestMemory, write: &Record, cpu: &CpuState) -> bool {
    let at = |n: u64| AddressSpace::new(memory, cpu).physical(cpu.linear_rip().wrapping_add(n));
    let byte = |n: u64| memory.read_obj::<u8>(GuestAddress(at(n)?)).ok();
    let (Some(a), Some(b), Some(c)) = (byte(0), byte(1), byte(2)) else { return false };
    if !HYPERCALLS.contains(&[a, b, c]) {
        return false;
    }
    let Some(offset) = (0..3).find(|n| at(*n) == Some(write.address)) else { return false };
    let (from, size, bytes) = (offset as usize, usize::from(write.size), write.value.to_le_bytes());
    let Some(written) = bytes.get(..size) else { return false };
    let is_call = HYPERCALLS.iter().any(|it| it.get(from..from + size) == Some(written));
    is_call && memory.write_slice(written, GuestAddress(write.address)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::watch::testing::cpu;
    use crate::kvm::Exit;
    use crate::mem;
    use crate::x86::CpuInit;

    const AT: u64 = 0x1FFE;

    fn patches(memory: &GuestMemory, address: u64, data: &[u8]) -> bool {
        let cpu = cpu(CpuInit::protected(AT as u32, 8, 16), AT, 0);
        patch(memory, &Record::new(AT, 0, &Exit::MmioWrite { address, data }), &cpu)
    }

    #[test]
    fn only_a_hypercall_over_one_is_kvms_own_write() {
        let memory = mem::create(2 << 20).unwrap();
        assert!(!patches(&memory, AT, &HYPERCALLS[0]));
        memory.write_slice(&HYPERCALLS[1], GuestAddress(AT)).unwrap();
        assert!(!patches(&memory, AT, &[0x0F, 0x01, 0xD0]));
        assert!(!patches(&memory, AT + 3, &HYPERCALLS[0]));
        assert!(!patches(&memory, AT, &[0x0F, 0x01, 0xC1, 0x90]));
        assert!(patches(&memory, AT, &HYPERCALLS[0]));
        let mut now = [0; 3];
        memory.read_slice(&mut now, GuestAddress(AT)).unwrap();
        assert_eq!(now, HYPERCALLS[0]);
        assert!(patches(&memory, AT, &HYPERCALLS[0]));
    }

    #[test]
    fn a_hypercall_across_pages_is_patched_in_two_writes() {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_slice(&HYPERCALLS[0], GuestAddress(AT)).unwrap();
        assert!(patches(&memory, AT, &HYPERCALLS[1][..2]));
        assert!(patches(&memory, AT + 2, &HYPERCALLS[1][2..]));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(AT + 2)).unwrap(), 0xD9);
    }
}

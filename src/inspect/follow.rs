//! Where a guest goes on that is stepped: a single step does not come back from an
//! instruction that faults into a handler, or that loads the flags (Intel SDM Vol. 3B
//! 18.3.1.4).

use iced_x86::Mnemonic;

use super::fault::Standing;
use super::walk::AddressSpace;
use super::{delivery, special};
use crate::mem::GuestMemory;
use crate::x86::{CpuState, Efer, Mode};

/// Where a vCPU goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Linear address.
    pub linear: u64,
    /// In which ring.
    pub ring: u8,
}

/// Where a vCPU in this state goes on; `None` where a single step comes back by itself.
pub fn leaves_to(memory: &GuestMemory, cpu: &CpuState) -> Option<Target> {
    let at = Standing::new(AddressSpace::new(memory, cpu), cpu);
    if let Some(fault) = at.fault() {
        let chain = delivery::chain(&at.space, cpu, fault);
        let entered = chain.attempts.last().filter(|attempt| attempt.obstacle.is_none())?;
        let gate = entered.gate.as_ref()?;
        // Handlers of protected mode live in flat segments, in all that matters here.
        let base = if gate.kind.is_none() { u64::from(gate.selector) << 4 } else { 0 };
        // A breakpoint at the instruction itself would never let it run.
        let linear = base.wrapping_add(gate.offset);
        return Some(Target { linear, ring: 0 }).filter(|_| linear != cpu.linear_rip());
    }
    let it = at.instruction()?;
    let (rip, ring) = match it.mnemonic() {
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => (it.next_ip(), cpu.ring()),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
            let slot = |n| special::iret_slot(&at, &it, n);
            let virtual_8086 = special::enters_virtual_8086(&at, &it)?;
            if cpu.mode() == Mode::Real || virtual_8086 {
                let (base, ring) = (slot(1)? << 4 & 0xF_FFF0, if virtual_8086 { 3 } else { 0 });
                return Some(Target { linear: base.wrapping_add(slot(0)?), ring });
            }
            (slot(0)?, slot(1)? as u8 & 3)
        }
        Mnemonic::Sysret | Mnemonic::Sysretq if cpu.efer.contains(Efer::SCE) => (cpu.regs.rcx, 3),
        _ => return None,
    };
    Some(Target { linear: at.code.linear(rip), ring })
}

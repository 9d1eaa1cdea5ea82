//! What KVM debugs of a vCPU: single steps, breakpoints, watchpoints (Linux,
//! Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG).

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, KVM_MP_STATE_HALTED,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_guest_debug, kvm_guest_debug_arch, kvm_mp_state,
};

use super::Vcpu;
use crate::kvm::Error;
use crate::x86::Rflags;

impl Vcpu {
    /// Sets what is debugged; the last call counts.
    pub fn set_debug(&self, debug: &Debug) -> Result<(), Error> {
        if let Some(Inject::Debug { dr6 }) = debug.inject {
            self.tell_dr6(dr6)?;
        }
        let arch = kvm_guest_debug_arch { debugreg: debug.registers() };
        self.fd
            .set_guest_debug(&kvm_guest_debug { control: debug.control(), pad: 0, arch })
            .map_err(Error::ioctl("KVM_SET_GUEST_DEBUG"))
    }

    /// KVM tells user space alone why a debug exit was, and injects the exception without that.
    fn tell_dr6(&self, dr6: u64) -> Result<(), Error> {
        // What fired, and by which: the four registers, BD and BS (Intel SDM Vol. 3B 18.2.3).
        const REGISTERS: u64 = 0xF;
        const TOLD: u64 = REGISTERS | 1 << 13 | 1 << 14;
        let mut registers = self.fd.get_debug_regs().map_err(Error::ioctl("KVM_GET_DEBUGREGS"))?;
        registers.dr6 = registers.dr6 & !REGISTERS | dr6 & TOLD;
        self.fd.set_debug_regs(&registers).map_err(Error::ioctl("KVM_SET_DEBUGREGS"))
    }

    /// Has a vCPU that stands before a HLT run it. KVM's instruction emulator does not halt a
    /// vCPU that it single-steps: it halts it after the next instruction that it emulates,
    /// wherever that is. What this leaves is what VT-x and AMD-V leave.
    pub fn step_hlt(&mut self) -> Result<HltStep, Error> {
        if !self.local_apic {
            return Ok(HltStep::Exits);
        }
        if self.run_state()?.is_halted() {
            return Ok(HltStep::Waits);
        }
        let mut regs = self.fd.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?;
        regs.rip = regs.rip.wrapping_add(1);
        regs.rflags &= !Rflags::RF.bits();
        self.fd.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))?;
        self.fd.sync_regs_mut().regs = regs;
        // STI holds interrupts back until the end of one instruction, which was the HLT.
        let mut events = self.fd.get_vcpu_events().map_err(Error::ioctl("KVM_GET_VCPU_EVENTS"))?;
        (events.flags, events.interrupt.shadow) = (KVM_VCPUEVENT_VALID_SHADOW, 0);
        self.fd.set_vcpu_events(&events).map_err(Error::ioctl("KVM_SET_VCPU_EVENTS"))?;
        let halted = kvm_mp_state { mp_state: KVM_MP_STATE_HALTED };
        self.fd.set_mp_state(halted).map_err(Error::ioctl("KVM_SET_MP_STATE"))?;
        Ok(HltStep::Halted)
    }
}

/// What a step of HLT came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HltStep {
    /// The vCPU stands behind it, and waits for an interrupt when it runs.
    Halted,
    /// It was not done: without a local APIC the instruction is an exit.
    Exits,
    /// It was not done: the vCPU waits already.
    Waits,
}

/// What a debug register watches for (Intel SDM Vol. 3B 18.2.4: the R/W field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Execution.
    Execute,
    /// Data writes.
    Write,
    /// Data reads and writes.
    Access,
}

/// A hardware breakpoint or watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareBreakpoint {
    /// Linear address, a multiple of `len`.
    pub address: u64,
    /// 1, 2, 4 or 8 bytes; 1 for execution.
    pub len: u8,
    /// What it watches for.
    pub kind: WatchKind,
}

/// An exception of the guest's own that came out as a debug exit, and has to go back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// #DB: its own single step or debug registers.
    Debug {
        /// What DR6 tells of it.
        dr6: u64,
    },
    /// #BP: its own INT3.
    Breakpoint,
}

/// What KVM debugs of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debug {
    /// An exit after every instruction.
    pub single_step: bool,
    /// No interrupt meanwhile: a single step would end in its handler, and never get on.
    /// Kernels before 5.16 do not know this and let interrupts in.
    pub block_interrupts: bool,
    /// Given to the guest when it runs on.
    pub inject: Option<Inject>,
    /// INT3 exits instead of going to the guest.
    pub software_breakpoints: bool,
    /// The four debug registers.
    pub hardware: [Option<HardwareBreakpoint>; 4],
}

impl Debug {
    /// The control word of KVM_SET_GUEST_DEBUG.
    fn control(&self) -> u32 {
        let flags = [
            (self.single_step, KVM_GUESTDBG_SINGLESTEP),
            (self.block_interrupts, KVM_GUESTDBG_BLOCKIRQ),
            (self.software_breakpoints, KVM_GUESTDBG_USE_SW_BP),
            (self.hardware.iter().any(Option::is_some), KVM_GUESTDBG_USE_HW_BP),
            (matches!(self.inject, Some(Inject::Debug { .. })), KVM_GUESTDBG_INJECT_DB),
            (self.inject == Some(Inject::Breakpoint), KVM_GUESTDBG_INJECT_BP),
        ];
        let control = flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
        if control == 0 { 0 } else { control | KVM_GUESTDBG_ENABLE }
    }

    /// DR0 to DR7.
    fn registers(&self) -> [u64; 8] {
        let mut registers = [0; 8];
        registers[7] = 1 << 10; // always 1
        for (n, breakpoint) in self.hardware.iter().enumerate() {
            let Some(HardwareBreakpoint { address, len, kind }) = breakpoint else { continue };
            registers[n] = *address;
            let condition = match kind {
                WatchKind::Execute => 0,
                WatchKind::Write => 1,
                WatchKind::Access => 3,
            };
            let size = match len {
                2 => 1,
                4 => 3,
                8 => 2,
                _ => 0,
            };
            registers[7] |= 2 << (2 * n) | (condition | size << 2) << (16 + 4 * n);
        }
        registers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_registers() {
        let at = |address, len, kind| Some(HardwareBreakpoint { address, len, kind });
        let hardware =
            [at(0x1000, 1, WatchKind::Execute), None, at(0x2000, 8, WatchKind::Write), None];
        let registers = Debug { hardware, ..Debug::default() }.registers();
        assert_eq!((registers[0], registers[2]), (0x1000, 0x2000));
        assert_eq!(registers[7], 1 << 10 | 2 | 2 << 4 | 0b1001 << 24);
    }

    #[test]
    fn nothing_to_debug_switches_debugging_off() {
        assert_eq!(Debug::default().control(), 0);
        let step = Debug { single_step: true, block_interrupts: true, ..Debug::default() };
        let expected = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
        assert_eq!(step.control(), expected);
    }
}

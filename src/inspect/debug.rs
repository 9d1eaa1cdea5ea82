//! Debug exceptions that the guest has asked for itself, by its debug registers or RFLAGS.TF
//! (Intel SDM Vol. 3B 18.2, 18.3).

use super::fault::{DEBUG, Fault};
use crate::kvm::DebugRegisters;
use crate::x86::{CpuState, Rflags};

/// DR6.BS: a single step.
const SINGLE_STEP: u64 = 1 << 14;

/// The one that this vCPU certainly stands at: a breakpoint at its instruction, which comes before
/// all that the instruction itself raises, or what DR6 tells of.
pub(super) fn told(cpu: &CpuState, registers: &DebugRegisters) -> Option<Fault> {
    let numbers = || (0..registers.addresses.len()).filter(|n| registers.dr7 >> (2 * n) & 3 != 0);
    let is_told = |n: &usize| registers.dr6 >> n & 1 != 0;
    // R/W: 0 is execution, 1 and 3 are data.
    let condition = |n: usize| registers.dr7 >> (16 + 4 * n) & 3;
    let here = |n: &usize| condition(*n) == 0 && registers.addresses[*n] == cpu.linear_rip();
    let passes = cpu.rflags.contains(Rflags::RF);
    if let Some(n) = numbers().find(|n| here(n) && (is_told(n) || !passes)) {
        return Some(Fault::new(DEBUG, format!("DR{n} has a breakpoint here")));
    }
    if let Some(n) = numbers().find(|n| is_told(n) && matches!(condition(*n), 1 | 3)) {
        let address = registers.addresses[n];
        return Some(Fault::new(DEBUG, format!("DR{n} watches {address:#x}")));
    }
    single_step(cpu).filter(|_| registers.dr6 & SINGLE_STEP != 0)
}

/// After an instruction with RFLAGS.TF: the vCPU stands at the next one.
pub(super) fn single_step(cpu: &CpuState) -> Option<Fault> {
    let asked = cpu.rflags.contains(Rflags::TF);
    asked.then(|| Fault::new(DEBUG, "a single step: RFLAGS.TF is set"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::{CpuInit, Regs};

    fn words(change: impl Fn(&mut CpuState, &mut DebugRegisters)) -> Option<String> {
        let mut cpu = CpuState::from(&CpuInit::long(0x8000, 0x1000, 8, 16));
        cpu.regs = Regs { rip: 0x8000, ..cpu.regs };
        let mut registers = DebugRegisters { dr6: 0xFFFF_0FF0, dr7: 1 << 10, ..Default::default() };
        change(&mut cpu, &mut registers);
        told(&cpu, &registers).map(|fault| fault.words())
    }

    #[test]
    fn a_breakpoint_of_the_guests_own() {
        let set = |it: &mut DebugRegisters| {
            it.addresses[2] = 0x8000;
            it.dr7 |= 2 << 4;
        };
        let found = Some("debug exception (DR2 has a breakpoint here)".to_owned());
        assert_eq!(words(|_, it| set(it)), found);
        assert_eq!(words(|_, it| it.addresses[2] = 0x8000), None, "not enabled");
        // RF lets the instruction run, unless DR6 says that it has not.
        let passed = |cpu: &mut CpuState, it: &mut DebugRegisters| {
            set(it);
            cpu.rflags |= Rflags::RF;
        };
        assert_eq!(words(passed), None);
        let hit = |cpu: &mut CpuState, it: &mut DebugRegisters| {
            passed(cpu, it);
            it.dr6 |= 1 << 2;
        };
        assert_eq!(words(hit), found);
    }

    #[test]
    fn a_watchpoint_and_a_single_step_are_told_by_dr6() {
        let watch = |it: &mut DebugRegisters| {
            it.addresses[0] = 0x9000;
            it.dr7 |= 1 | 1 << 16;
        };
        assert_eq!(words(|_, it| watch(it)), None);
        let hit = |_: &mut CpuState, it: &mut DebugRegisters| {
            watch(it);
            it.dr6 |= 1;
        };
        assert_eq!(words(hit).as_deref(), Some("debug exception (DR0 watches 0x9000)"));
        let stepped = |cpu: &mut CpuState, _: &mut DebugRegisters| cpu.rflags |= Rflags::TF;
        assert_eq!(words(stepped), None);
        let told = |cpu: &mut CpuState, it: &mut DebugRegisters| {
            stepped(cpu, it);
            it.dr6 |= SINGLE_STEP;
        };
        let found = "debug exception (a single step: RFLAGS.TF is set)";
        assert_eq!(words(told).as_deref(), Some(found));
    }
}

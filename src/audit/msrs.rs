//! The model-specific registers that a guest should not see as the host has them: what its kernel
//! reads there, and whether it can write it back. Called by the audit; runs RDMSR in the lab.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Error;
use super::context::LONG_0;
use super::instruction::Input;
use super::lab::{End, Lab};
use super::native;
use super::program::Plan;
use super::report::{Msr, Whose};

/// What a value is to be if it is the guest's own.
#[derive(Clone, Copy)]
enum Own {
    /// This: its value at reset, or what the audit gave it.
    Is(u64),
    /// Nothing is known: what KVM invents, or nothing at all.
    Unknown,
    /// The time-stamp counter.
    Clock,
}

struct Row {
    index: u32,
    name: &'static str,
    about: &'static str,
    own: Own,
    write: Write,
}

/// Whether what was read is written back: that does no harm, whosever the register is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// It is not tried: the register goes on, or a write has an effect of its own.
    Never,
    /// A kernel writes it.
    Own,
    /// It is the machine's: a guest should get an exception, or a copy of its own.
    Foreign,
}

const fn row(index: u32, name: &'static str, own: Own, write: Write, about: &'static str) -> Row {
    Row { index, name, about, own, write }
}

const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;
const APIC_BASE: u64 = 0xFEE0_0900;
/// SCE is off: LME and LMA.
const EFER: u64 = 1 << 8 | 1 << 10;

/// Intel SDM Vol. 4, chapter 2; AMD APM Vol. 2, appendix A.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(0x10, "IA32_TIME_STAMP_COUNTER", Own::Clock, Write::Never, "how long the host is up"),
    row(0x17, "IA32_PLATFORM_ID", Own::Unknown, Write::Never, "the processor's package"),
    row(0x1B, "IA32_APIC_BASE", Own::Is(APIC_BASE), Write::Own, "where the local APIC is, and whether it is on"),
    row(0x34, "MSR_SMI_COUNT", Own::Unknown, Write::Never, "how often the host's firmware interrupted"),
    row(0x3A, "IA32_FEATURE_CONTROL", Own::Unknown, Write::Foreign, "what the firmware allows of VT-x"),
    row(0x3B, "IA32_TSC_ADJUST", Own::Is(0), Write::Own, "how the host's clock was set right"),
    row(0x48, "IA32_SPEC_CTRL", Own::Is(0), Write::Own, "which speculation is held back"),
    row(0x8B, "IA32_BIOS_SIGN_ID", Own::Unknown, Write::Foreign, "the revision of the microcode: which holes are open"),
    row(0xCE, "MSR_PLATFORM_INFO", Own::Unknown, Write::Foreign, "the frequency of the processor, and CPUID faulting"),
    row(0xE7, "IA32_MPERF", Own::Unknown, Write::Never, "cycles at the nominal frequency: what the host's other work costs"),
    row(0xE8, "IA32_APERF", Own::Unknown, Write::Never, "cycles at the real frequency"),
    row(0xFE, "IA32_MTRRCAP", Own::Unknown, Write::Foreign, "the host's memory types"),
    row(0x10A, "IA32_ARCH_CAPABILITIES", Own::Unknown, Write::Foreign, "which holes the processor does not have"),
    row(0x140, "MSR_MISC_FEATURES_ENABLES", Own::Is(0), Write::Own, "is CPUID faulting on?"),
    row(0x174, "IA32_SYSENTER_CS", Own::Is(0), Write::Own, "the kernel's code segment"),
    row(0x175, "IA32_SYSENTER_ESP", Own::Is(0), Write::Own, "an address in the host's kernel"),
    row(0x176, "IA32_SYSENTER_EIP", Own::Is(0), Write::Own, "an address in the host's kernel"),
    row(0x179, "IA32_MCG_CAP", Own::Unknown, Write::Foreign, "the banks of machine checks"),
    row(0x17A, "IA32_MCG_STATUS", Own::Is(0), Write::Never, "a machine check of the host's"),
    row(0x198, "IA32_PERF_STATUS", Own::Unknown, Write::Foreign, "the present frequency"),
    row(0x199, "IA32_PERF_CTL", Own::Unknown, Write::Foreign, "the frequency that is asked for"),
    row(0x19C, "IA32_THERM_STATUS", Own::Unknown, Write::Never, "the temperature of the processor"),
    row(0x1A0, "IA32_MISC_ENABLE", Own::Unknown, Write::Foreign, "what the firmware switched on"),
    row(0x1A2, "MSR_TEMPERATURE_TARGET", Own::Unknown, Write::Foreign, "the temperature that it may have"),
    row(0x1B0, "IA32_ENERGY_PERF_BIAS", Own::Unknown, Write::Foreign, "speed or thrift"),
    row(0x1B1, "IA32_PACKAGE_THERM_STATUS", Own::Unknown, Write::Never, "the temperature of the package"),
    row(0x1D9, "IA32_DEBUGCTL", Own::Is(0), Write::Own, "is the host traced?"),
    row(0x200, "IA32_MTRR_PHYSBASE0", Own::Unknown, Write::Foreign, "the host's memory types"),
    row(0x277, "IA32_PAT", Own::Is(PAT_AT_RESET), Write::Own, "the host's memory types: Linux changes them"),
    row(0x2FF, "IA32_MTRR_DEF_TYPE", Own::Unknown, Write::Foreign, "the host's memory types"),
    row(0x345, "IA32_PERF_CAPABILITIES", Own::Unknown, Write::Never, "what can be counted"),
    row(0x38F, "IA32_PERF_GLOBAL_CTRL", Own::Unknown, Write::Never, "what is counted"),
    row(0x480, "IA32_VMX_BASIC", Own::Unknown, Write::Foreign, "what VT-x can do"),
    row(0x606, "MSR_RAPL_POWER_UNIT", Own::Unknown, Write::Never, "units of energy"),
    row(0x611, "MSR_PKG_ENERGY_STATUS", Own::Unknown, Write::Never, "the energy that the package used: a side channel"),
    row(0x639, "MSR_PP0_ENERGY_STATUS", Own::Unknown, Write::Never, "the energy that the cores used"),
    row(0x6E0, "IA32_TSC_DEADLINE", Own::Is(0), Write::Never, "when the host's timer fires"),
    row(0xDA0, "IA32_XSS", Own::Is(0), Write::Own, "the state that kernels save"),
    row(0xC000_0080, "IA32_EFER", Own::Is(EFER), Write::Own, "long mode, SYSCALL, no-execute, AMD-V"),
    row(0xC000_0081, "IA32_STAR", Own::Is(0), Write::Own, "the segments of SYSCALL"),
    row(0xC000_0082, "IA32_LSTAR", Own::Is(0), Write::Own, "where the host's kernel is entered: its randomised address"),
    row(0xC000_0083, "IA32_CSTAR", Own::Is(0), Write::Own, "where the host's kernel is entered"),
    row(0xC000_0084, "IA32_FMASK", Own::Is(0), Write::Own, "the flags that SYSCALL clears"),
    row(0xC000_0100, "IA32_FS_BASE", Own::Is(0), Write::Own, "an address in a program of the host's"),
    row(0xC000_0101, "IA32_GS_BASE", Own::Is(0), Write::Own, "an address in the host's kernel"),
    row(0xC000_0102, "IA32_KERNEL_GS_BASE", Own::Is(0), Write::Own, "an address in the host's kernel"),
    row(0xC000_0103, "IA32_TSC_AUX", Own::Is(0), Write::Own, "on which of the host's processors the guest runs"),
    row(0xC001_0010, "MSR_AMD64_SYSCFG", Own::Unknown, Write::Foreign, "memory encryption (AMD)"),
    row(0xC001_0015, "MSR_K7_HWCR", Own::Unknown, Write::Foreign, "what the firmware locked (AMD)"),
    row(0xC001_0114, "MSR_VM_CR", Own::Unknown, Write::Foreign, "is AMD-V locked?"),
    row(0xC001_0117, "MSR_VM_HSAVE_PA", Own::Is(0), Write::Never, "an address in the host's kernel"),
    row(0xC001_0299, "MSR_AMD_RAPL_POWER_UNIT", Own::Unknown, Write::Never, "units of energy (AMD)"),
    row(0xC001_029B, "MSR_AMD_PKG_ENERGY_STATUS", Own::Unknown, Write::Never, "the energy that the package used (AMD)"),
];

/// Linux's half of the address space begins here: such an address, where none was set, is the
/// host's kernel's.
const KERNEL_SPACE: u64 = 0xFFFF_8000_0000_0000;

/// Reads them all, in ring 0 of long mode; `cpu` is the host's processor that this thread is on.
pub fn examine(lab: &mut Lab, cpu: usize) -> Result<Vec<Msr>, Error> {
    let host = File::open(format!("/dev/cpu/{cpu}/msr")).ok();
    ROWS.iter().map(|row| look(lab, row, host.as_ref())).collect()
}

fn look(lab: &mut Lab, row: &Row, host: Option<&File>) -> Result<Msr, Error> {
    let inputs = [Input::None, Input::Value(row.index), Input::None];
    let before = native::tsc();
    let read = Plan { bytes: &[0x0F, 0x32], inputs, ..Plan::empty(LONG_0) };
    let run = lab.run(&read)?;
    let value = run.regs.rdx << 32 | run.regs.rax & 0xFFFF_FFFF;
    let value = (run.end == End::Finished).then_some(value);
    let writable = match value {
        Some(value) if row.write != Write::Never => Some(write(lab, row.index, value)?),
        _ => None,
    };
    let host = host.and_then(|file| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, row.index.into()).ok()?;
        Some(u64::from_le_bytes(bytes))
    });
    let (whose, why) = whose(row, value, host, (before, native::tsc()));
    let hex = |value: u64| format!("{value:#x}");
    Ok(Msr {
        index: format!("{:#x}", row.index),
        name: row.name.to_owned(),
        about: row.about.to_owned(),
        value: value.map(hex),
        writable,
        foreign: row.write == Write::Foreign,
        host: host.map(hex),
        whose,
        why: why.to_owned(),
    })
}

fn write(lab: &mut Lab, index: u32, value: u64) -> Result<bool, Error> {
    let inputs =
        [Input::Value(value as u32), Input::Value(index), Input::Value((value >> 32) as u32)];
    let plan = Plan { bytes: &[0x0F, 0x30], inputs, ..Plan::empty(LONG_0) };
    Ok(lab.run(&plan)?.end == End::Finished)
}

fn whose(
    row: &Row,
    value: Option<u64>,
    host: Option<u64>,
    tsc: (u64, u64),
) -> (Option<Whose>, &'static str) {
    let Some(value) = value else { return (None, "an exception, as where it does not exist") };
    let (whose, why) = match row.own {
        Own::Clock if (tsc.0..=tsc.1).contains(&value) => {
            (Whose::Host, "it lies between two readings of the host's clock")
        }
        Own::Clock => (Whose::Own, "it has an offset to the host's clock"),
        Own::Is(own) if own == value => (Whose::Own, "what it is at reset, or what was set"),
        Own::Is(_) if value >= KERNEL_SPACE => {
            (Whose::Host, "an address in a kernel, where the guest has none")
        }
        // This host may be a guest, for which a KVM below has invented the same.
        Own::Unknown if host == Some(value) && value != 0 => {
            (Whose::Same, "the host's value, or one that KVM invents there and here alike")
        }
        _ if host == Some(value) && value != 0 => (Whose::Host, "the host's value"),
        _ if value == 0 && host.is_none_or(|host| host == 0) => {
            (Whose::Zero, "zero: whosever it is, nothing is told")
        }
        _ if host.is_some() => (Whose::Constant, "not the host's value"),
        _ => (Whose::Unknown, "the host's cannot be read: as root, modprobe msr"),
    };
    (Some(whose), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_a_kernel_that_the_guest_has_not_set_is_the_hosts() {
        let lstar = ROWS.iter().find(|row| row.name == "IA32_LSTAR").unwrap();
        let of = |value, host| whose(lstar, value, host, (0, 0)).0;
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(0), Some(0xFFFF_FFFF_8200_0000)), Some(Whose::Own));
        assert_eq!(of(Some(0xFFFF_FFFF_8200_0000), None), Some(Whose::Host));
        assert_eq!(of(Some(7), Some(7)), Some(Whose::Host));
        assert_eq!(of(Some(7), None), Some(Whose::Unknown));
        assert_eq!(of(Some(7), Some(8)), Some(Whose::Constant));
        let feature = ROWS.iter().find(|row| row.name == "IA32_FEATURE_CONTROL").unwrap();
        let of = |value, host| whose(feature, Some(value), host, (0, 0)).0;
        assert_eq!(of(0, None), Some(Whose::Zero));
        assert_eq!(of(0, Some(0)), Some(Whose::Zero));
        assert_eq!(of(0, Some(5)), Some(Whose::Constant));
        assert_eq!(of(5, Some(5)), Some(Whose::Same));
    }
}

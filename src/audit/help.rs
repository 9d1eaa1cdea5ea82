//! What the hardware has to help an isolation, and whether it works for a guest: UMIP, TSD, CPUID
//! faulting; nested paging and the extensions themselves. Called by the audit.

use std::fs;

use super::Error;
use super::context::LONG_3;
use super::instruction::{Feature, GENERAL_PROTECTION, Register};
use super::judge::has;
use super::lab::{End, Lab};
use super::native;
use super::program::Plan;
use super::report::Help;
use super::table::INSTRUCTIONS;
use crate::kvm::Backend;
use crate::x86::Cr4;
use crate::x86::cpuid::Leaf;

/// CR4.TSD: RDTSC raises #GP outside ring 0.
const CR4_TSD: u64 = 1 << 2;
const UMIP: Feature = Feature { leaf: 7, sub_leaf: 0, register: Register::C, bit: 2, name: "umip" };
const VMX: Feature = Feature { leaf: 1, sub_leaf: 0, register: Register::C, bit: 5, name: "vmx" };
const SVM: Feature =
    Feature { leaf: 0x8000_0001, sub_leaf: 0, register: Register::C, bit: 2, name: "svm" };
/// The MSR whose bit 0 switches CPUID faulting on (Intel SDM Vol. 4, table 2-3).
const MISC_FEATURES_ENABLES: u32 = 0x140;

/// A help that is switched on in a guest: which instructions then trap in ring 3.
struct Switch {
    name: &'static str,
    instructions: &'static [&'static str],
    cr4: u64,
    msrs: &'static [(u32, u64)],
}

const SWITCHES: &[Switch] = &[
    Switch {
        name: "UMIP",
        instructions: &["sgdt", "sidt", "sldt", "smsw", "str"],
        cr4: Cr4::UMIP.bits(),
        msrs: &[],
    },
    Switch { name: "TSD", instructions: &["rdtsc", "rdtscp"], cr4: CR4_TSD, msrs: &[] },
    Switch {
        name: "CPUID faulting",
        instructions: &["cpuid"],
        cr4: 0,
        msrs: &[(MISC_FEATURES_ENABLES, 1)],
    },
];

/// What is found, and the instructions that trap in ring 3 by these helps.
pub fn examine(lab: &mut Lab, leaves: &[Leaf]) -> Result<(Vec<Help>, Vec<String>), Error> {
    let (mut found, mut trapping) = (vec![], vec![]);
    for switch in SWITCHES {
        let trapped = try_switch(lab, switch)?;
        found.push(described(switch, trapped.as_deref(), leaves));
        trapping.extend(trapped.unwrap_or_default());
    }
    found.push(Help {
        name: "VT-x or AMD-V".to_owned(),
        host: Some(has_natively(VMX) || has_natively(SVM)),
        guest: Some(has(leaves, VMX) || has(leaves, SVM)),
        found: "hardware that gives a guest a ring 0, and registers, of its own".to_owned(),
    });
    found.push(nested_paging());
    Ok((found, trapping))
}

/// The instructions that raise #GP in ring 3 with the help on; `None` where it cannot be on.
fn try_switch(lab: &mut Lab, switch: &Switch) -> Result<Option<Vec<String>>, Error> {
    let mut trapped = vec![];
    for name in switch.instructions {
        let Some(row) = INSTRUCTIONS.iter().find(|row| row.name == *name) else { continue };
        let Some(plan) = Plan::of(row, LONG_3) else { continue };
        let plan = Plan { cr4: plan.cr4 | switch.cr4, msrs: switch.msrs, ..plan };
        match lab.run(&plan)?.end {
            End::Vector { number: GENERAL_PROTECTION, .. } => trapped.push((*name).to_owned()),
            End::Finished | End::Vector { .. } | End::Elsewhere { .. } => {}
            _ => return Ok(None),
        }
    }
    let refused = !switch.msrs.is_empty() && trapped.is_empty();
    Ok((!refused).then_some(trapped))
}

fn described(switch: &Switch, trapped: Option<&[String]>, leaves: &[Leaf]) -> Help {
    let (host, guest) = match switch.name {
        "UMIP" => (Some(has_natively(UMIP)), Some(has(leaves, UMIP))),
        "TSD" => (Some(true), Some(true)), // as old as the TSC
        _ => (cpuinfo_has("cpuid_fault"), Some(trapped.is_some())),
    };
    let found = match trapped {
        None => "cannot be switched on in the guest".to_owned(),
        Some([]) => "switched on, it changes nothing".to_owned(),
        Some(names) => format!("switched on, these raise #GP in ring 3: {}", names.join(", ")),
    };
    Help { name: switch.name.to_owned(), host, guest, found }
}

/// Is it one that UMIP makes trap?
pub fn is_of_umip(name: &str) -> bool {
    SWITCHES[0].instructions.contains(&name)
}

fn has_natively(feature: Feature) -> bool {
    has(&[native::cpuid(feature.leaf, feature.sub_leaf)], feature)
}

/// Does Linux name this feature among those that are on? `None` where it does not say.
pub fn cpuinfo_has(flag: &str) -> Option<bool> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let flags = text.lines().find(|line| line.starts_with("flags"))?;
    Some(flags.split_whitespace().any(|word| word == flag))
}

/// The module's own parameter says whether it uses EPT or NPT.
fn nested_paging() -> Help {
    let parameter = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let ept = parameter("/sys/module/kvm_intel/parameters/ept");
    let npt = parameter("/sys/module/kvm_amd/parameters/npt");
    let used = ept.or(npt);
    let found = match used.as_deref() {
        Some("Y" | "1") => "in use: a guest's page tables are its own business",
        Some(_) => "not in use: KVM keeps shadow page tables",
        None if Backend::detect() == Backend::KvmPvm => {
            "not in use: kvm_pvm keeps shadow page tables"
        }
        None => "not told: the module's parameter cannot be read",
    };
    let unknown = used.is_none() && Backend::detect() != Backend::KvmPvm;
    let host = (!unknown).then_some(matches!(used.as_deref(), Some("Y" | "1")));
    Help { name: "nested paging (EPT, NPT)".to_owned(), host, guest: None, found: found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switched_instruction_is_in_the_table() {
        for name in SWITCHES.iter().flat_map(|switch| switch.instructions) {
            assert!(INSTRUCTIONS.iter().any(|row| row.name == *name), "{name}");
        }
    }

    #[test]
    fn what_traps_is_named() {
        let names = ["sgdt".to_owned(), "str".to_owned()];
        let help = described(&SWITCHES[0], Some(&names), &[]);
        assert_eq!(help.found, "switched on, these raise #GP in ring 3: sgdt, str");
        assert_eq!(help.guest, Some(false));
        assert!(described(&SWITCHES[2], None, &[]).found.starts_with("cannot"));
    }
}

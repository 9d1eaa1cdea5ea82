//! What CPUID may show the guest: the changes made to what KVM offers.
//!
//! Called by `kvm` with the leaves that KVM supports; pure data in, data out.

/// One leaf of CPUID, as KVM's `kvm_cpuid_entry2` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the registers' own names
pub struct Leaf {
    pub function: u32,
    pub index: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What CPUID says of a processor's page tables (Intel SDM Vol. 3A 5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingFeatures {
    /// Bits of a physical address: 32 to 52.
    pub physical_bits: u32,
    /// An entry of level 3 may map 1 GiB; where it may not, its PS bit is reserved.
    pub gigabyte_pages: bool,
}

impl PagingFeatures {
    /// All that there is in any processor: nothing is taken for reserved that may not be.
    pub const ALL: Self = Self { physical_bits: 52, gigabyte_pages: true };

    /// Of a processor with this CPUID: 0x80000008 (36 bits where it has no such leaf), and bit 26
    /// of 0x80000001's EDX.
    pub fn of(leaves: &[Leaf]) -> Self {
        let leaf = |function| leaves.iter().find(|leaf| leaf.function == function);
        Self {
            physical_bits: leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xFF).clamp(32, 52),
            gigabyte_pages: leaf(0x8000_0001).is_some_and(|leaf| leaf.edx >> 26 & 1 != 0),
        }
    }
}

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the registers' own names
pub enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit that the guest does not see, and why.
#[derive(Clone, Copy, Debug)]
pub struct Masked {
    function: u32,
    reg: Reg,
    bit: u32,
    /// Masked only where the machine has no local APIC.
    without_apic_only: bool,
    /// The reason.
    pub why: &'static str,
}

const fn masked(function: u32, reg: Reg, bit: u32, apic: bool, why: &'static str) -> Masked {
    Masked { function, reg, bit, without_apic_only: apic, why }
}

/// Feature bits that KVM offers and the guest does not get: where they would be a lie, never;
/// the others unless it is asked for them by name.
pub const MASKED: &[Masked] = &[
    masked(1, Reg::Edx, 9, true, "no local APIC"),
    masked(1, Reg::Ecx, 21, true, "x2APIC: no local APIC"),
    masked(1, Reg::Ecx, 24, true, "TSC deadline timer: no local APIC"),
    masked(
        0x4000_0001,
        Reg::Eax,
        6,
        false,
        "PV EOI: a Linux with an I/O APIC hangs at boot with it where KVM itself runs nested",
    ),
];

/// What the leaves are adjusted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The vCPU's APIC ID.
    pub apic_id: u32,
    /// vCPUs of the machine.
    pub cpus: u32,
    /// Does it have local APICs?
    pub local_apic: bool,
    /// Can KVM's local APIC do the TSC deadline timer?
    pub tsc_deadline: bool,
}

impl Policy {
    /// Changes one leaf to what this vCPU is to see.
    pub fn adjust(&self, leaf: &mut Leaf) {
        self.offer(leaf);
        self.mask(leaf, |masked| !masked.without_apic_only);
    }

    /// Changes one leaf to what this vCPU could see. (Intel SDM Vol. 2A, CPUID, table 3-8;
    /// AMD APM Vol. 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst)
    pub(super) fn offer(&self, leaf: &mut Leaf) {
        let bits = self.apic_id_bits();
        match leaf.function {
            // Initial APIC ID, and the number of IDs in the package.
            1 => {
                let ids = (1_u32 << bits).min(255);
                leaf.ebx = leaf.ebx & 0xFFFF | ids << 16 | self.apic_id << 24;
                // HTT: the number of IDs counts.
                set(&mut leaf.edx, 28, self.cpus > 1);
                // Under a hypervisor, and with its TSC deadline timer: KVM leaves these two
                // for user space to say (api.rst, KVM_GET_SUPPORTED_CPUID).
                set(&mut leaf.ecx, 31, true);
                if self.tsc_deadline {
                    set(&mut leaf.ecx, 24, true);
                }
            }
            // Extended topology: one thread a core, all cores in one package.
            0xB | 0x1F => {
                let (shift, count, kind) = match leaf.index {
                    0 => (0, 1, 1),
                    1 => (bits, self.cpus, 2),
                    _ => (0, 0, 0),
                };
                leaf.eax = shift;
                leaf.ebx = count;
                leaf.ecx = leaf.index | kind << 8;
                leaf.edx = self.apic_id;
            }
            // AMD: number of cores, and of the bits of an ID.
            0x8000_0008 => leaf.ecx = leaf.ecx & !0xF0FF | (self.cpus - 1) & 0xFF | bits << 12,
            // AMD: extended APIC ID, one thread a core, one node.
            0x8000_001E => {
                leaf.eax = self.apic_id;
                leaf.ebx = self.apic_id & 0xFF;
                leaf.ecx = 0;
            }
            _ => {}
        }
        self.mask(leaf, |masked| masked.without_apic_only && !self.local_apic);
    }

    fn mask(&self, leaf: &mut Leaf, which: impl Fn(&Masked) -> bool) {
        for masked in MASKED.iter().filter(|m| m.function == leaf.function && which(m)) {
            let reg = match masked.reg {
                Reg::Eax => &mut leaf.eax,
                Reg::Ebx => &mut leaf.ebx,
                Reg::Ecx => &mut leaf.ecx,
                Reg::Edx => &mut leaf.edx,
            };
            set(reg, masked.bit, false);
        }
    }

    /// Bits that hold every APIC ID of the machine.
    fn apic_id_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }
}

fn set(reg: &mut u32, bit: u32, value: bool) {
    *reg = *reg & !(1 << bit) | u32::from(value) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(policy: Policy, function: u32, index: u32) -> Leaf {
        let all = u32::MAX;
        let mut leaf = Leaf { function, index, eax: all, ebx: all, ecx: all, edx: all };
        policy.adjust(&mut leaf);
        leaf
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        let policy = Policy { apic_id: 2, cpus: 3, local_apic: true, tsc_deadline: false };
        let leaf = adjusted(policy, 1, 0);
        assert_eq!(leaf.ebx, 2 << 24 | 4 << 16 | 0xFFFF);
        assert_eq!(
            adjusted(policy, 0xB, 1),
            Leaf { function: 0xB, index: 1, eax: 2, ebx: 3, ecx: 1 | 2 << 8, edx: 2 }
        );
        assert_eq!(adjusted(policy, 0x8000_0008, 0).ecx & 0xF0FF, 2 << 12 | 2);
    }

    #[test]
    fn without_a_local_apic_none_is_shown() {
        let none =
            adjusted(Policy { apic_id: 0, cpus: 1, local_apic: false, tsc_deadline: true }, 1, 0);
        assert_eq!(none.ecx & (1 << 21 | 1 << 24), 0);
        assert_eq!(none.edx & (1 << 9 | 1 << 28), 0);
        let some =
            adjusted(Policy { apic_id: 0, cpus: 1, local_apic: true, tsc_deadline: false }, 1, 0);
        assert_eq!(some.ecx, u32::MAX);
        let mut bare = Leaf { function: 1, ..Leaf::default() };
        Policy { apic_id: 0, cpus: 1, local_apic: true, tsc_deadline: true }.adjust(&mut bare);
        assert_eq!(bare.ecx, 1 << 24 | 1 << 31);
        assert_ne!(some.edx & 1 << 9, 0);
    }

    #[test]
    fn pv_eoi_is_never_shown() {
        let leaf = adjusted(
            Policy { apic_id: 0, cpus: 1, local_apic: true, tsc_deadline: false },
            0x4000_0001,
            0,
        );
        assert_eq!(leaf.eax, !(1 << 6));
    }

    #[test]
    fn cpuid_tells_of_page_tables() {
        let leaf = |function, eax, edx| Leaf { function, eax, edx, ..Leaf::default() };
        let of = PagingFeatures::of;
        assert_eq!(of(&[]), PagingFeatures { physical_bits: 36, gigabyte_pages: false });
        let leaves = [leaf(0x8000_0001, 0, 1 << 26), leaf(0x8000_0008, 0x3028, 0)];
        assert_eq!(of(&leaves), PagingFeatures { physical_bits: 40, gigabyte_pages: true });
    }
}

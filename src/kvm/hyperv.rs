//! Hyper-V's interface, as far as KVM has it: its CPUID leaves, and the synthetic interrupt
//! controller with its timers (Linux, Documentation/virt/kvm/api.rst, 4.118 and 8.6). Called by
//! the VM and its vCPUs for a guest whose processor model asks for it.

use kvm_bindings::{CpuId, KVM_CAP_SYS_HYPERV_CPUID, KVMIO, kvm_cpuid_entry2, kvm_cpuid2};
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl_iowr_nr;

use super::{Error, Kvm};

ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);

/// Hypervisors' leaves begin here; a second interface begins one step higher, where Linux's
/// guests look for it too (arch/x86/include/asm/cpuid/api.h, cpuid_base_hypervisor).
const FIRST: u32 = 0x4000_0000;
const STEP: u32 = 0x100;
/// More leaves than any KVM has.
const MOST: usize = 64;

/// What a hypercall of Hyper-V's that nobody knows gives (TLFS, HV_STATUS_INVALID_HYPERCALL_CODE).
pub const INVALID_HYPERCALL_CODE: u64 = 2;

/// The leaves of Hyper-V's interface; none where this KVM has no such interface.
pub(super) fn leaves(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    if kvm.fd.check_extension_raw(KVM_CAP_SYS_HYPERV_CPUID.into()) <= 0 {
        return Ok(Vec::new());
    }
    let refused = |source| Error::Ioctl { ioctl: "KVM_GET_SUPPORTED_HV_CPUID", source };
    let mut cpuid =
        CpuId::new(MOST).map_err(|_| refused(std::io::ErrorKind::OutOfMemory.into()))?;
    let to = cpuid.as_mut_fam_struct_ptr();
    // SAFETY: `to` has room for the number of entries that it says it has; the kernel fills in
    // no more, and sets the number to what it filled in.
    let result = unsafe { ioctl_with_mut_ptr(&kvm.fd, KVM_GET_SUPPORTED_HV_CPUID(), to) };
    if result != 0 {
        return Err(refused(std::io::Error::last_os_error()));
    }
    Ok(cpuid.as_slice().to_vec())
}

/// `cpuid` with Hyper-V's leaves where a guest looks first, and KVM's own behind them.
pub(super) fn first(cpuid: &CpuId, hyperv: &[kvm_cpuid_entry2]) -> CpuId {
    let mut entries = cpuid.as_slice().to_vec();
    for entry in entries.iter_mut().filter(|entry| (FIRST..FIRST + STEP).contains(&entry.function))
    {
        if entry.function == FIRST {
            entry.eax += STEP; // the last leaf
        }
        entry.function += STEP;
    }
    entries.extend(hyperv);
    // Fails only where there are more entries than the structure may have: then without.
    CpuId::from_entries(&entries).unwrap_or_else(|_| cpuid.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_s_leaves_make_room() {
        let leaf = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let cpuid = [leaf(1, 7), leaf(FIRST, FIRST + 1), leaf(FIRST + 1, 0xFF)];
        let hyperv = [leaf(FIRST, FIRST + 6), leaf(FIRST + 1, 0x3123_7648)];
        let all = first(&CpuId::from_entries(&cpuid).unwrap(), &hyperv);
        let found: Vec<_> = all.as_slice().iter().map(|it| (it.function, it.eax)).collect();
        let moved = [(1, 7), (FIRST + STEP, FIRST + STEP + 1), (FIRST + STEP + 1, 0xFF)];
        assert_eq!(found[..3], moved);
        assert_eq!(found[3..], [(FIRST, FIRST + 6), (FIRST + 1, 0x3123_7648)]);
    }
}

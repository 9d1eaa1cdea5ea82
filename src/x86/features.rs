//! The names of CPUID's feature bits: Linux's (arch/x86/include/asm/cpufeatures.h) and QEMU's,
//! which differ in few. `-`, `_` and `.` count as the same.

use super::cpuid::Reg;

/// A feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Leaf.
    pub function: u32,
    /// Sub-leaf.
    pub index: u32,
    /// Register.
    pub reg: Reg,
    /// Bit.
    pub bit: u32,
    /// Its first name.
    pub name: &'static str,
}

/// Leaf, sub-leaf, register, and the names from bit 0: `.` has none, `|` separates names of one.
type Row = (u32, u32, Reg, &'static str);

#[rustfmt::skip]
const NAMES: &[Row] = &[
    (1, 0, Reg::Edx, "fpu vme de pse tsc msr pae mce cx8 apic . sep mtrr pge mca cmov pat pse36 pn clflush|clfsh . ds|dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"),
    (1, 0, Reg::Ecx, "sse3|pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm . pcid dca sse4-1 sse4-2 x2apic movbe popcnt tsc-deadline|tsc-deadline-timer aes xsave . avx f16c rdrand hypervisor"),
    (6, 0, Reg::Eax, ". . arat"),
    (7, 0, Reg::Ebx, "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm cqm zero-fcs-fds mpx rdt-a avx512f avx512dq rdseed adx smap avx512ifma . clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl"),
    (7, 0, Reg::Ecx, "prefetchwt1 avx512vbmi umip pku . waitpkg avx512-vbmi2 shstk|user-shstk gfni vaes vpclmulqdq avx512-vnni avx512-bitalg tme avx512-vpopcntdq . la57 . . . . . rdpid . bus-lock-detect cldemote . movdiri movdir64b enqcmd sgx-lc pks"),
    (7, 0, Reg::Edx, ". . avx512-4vnniw avx512-4fmaps fsrm uintr . . avx512-vp2intersect srbds-ctrl md-clear . . tsx-force-abort serialize hybrid tsxldtrk . pconfig arch-lbr ibt . amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities core-capability ssbd"),
    (7, 1, Reg::Eax, "sha512 sm3 sm4 . avx-vnni avx512-bf16 lass cmpccxadd . . fzrm fsrs fsrc . . . . fred lkgs wrmsrns . amx-fp16 hreset avx-ifma . . lam"),
    (0xD, 1, Reg::Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (0x8000_0001, 0, Reg::Ecx, "lahf-lm cmp-legacy svm extapic cr8-legacy abm|lzcnt sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt . lwp fma4 tce . nodeid-msr . tbm topoext perfctr-core perfctr-nb . bpext ptsc perfctr-llc mwaitx"),
    (0x8000_0001, 0, Reg::Edx, ". . . . . . . . . . . syscall . . . . . . . . nx . mmxext . . fxsr-opt pdpe1gb rdtscp . lm 3dnowext 3dnow"),
    (0x8000_0007, 0, Reg::Edx, ". . . . . . . . invtsc|constant-tsc"),
    (0x8000_0008, 0, Reg::Ebx, "clzero irperf xsaveerptr . rdpru . . . . wbnoinvd . . amd-ibpb|ibpb . amd-ibrs amd-stibp . . . . . . . . amd-ssbd virt-ssbd"),
    (0x8000_000A, 0, Reg::Edx, "npt lbrv svm-lock nrip-save|nrips tsc-scale vmcb-clean flushbyasid decodeassists . . pause-filter . pfthreshold avic . v-vmsave-vmload vgif"),
    (0x4000_0001, 0, Reg::Eax, "kvmclock-old kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt . kvm-pv-tlb-flush . kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id . . . . . . . . kvmclock-stable-bit"),
];

/// Every feature, with all its names.
fn all() -> impl Iterator<Item = (Feature, &'static str)> {
    NAMES.iter().flat_map(|&(function, index, reg, words)| {
        (0..).zip(words.split(' ')).filter(|(_, names)| *names != ".").map(move |(bit, names)| {
            let name = names.split('|').next().unwrap_or(names);
            (Feature { function, index, reg, bit, name }, names)
        })
    })
}

/// The feature of that name.
pub fn find(name: &str) -> Option<Feature> {
    let name = name.to_ascii_lowercase().replace(['_', '.'], "-");
    all().find(|(_, names)| names.split('|').any(|it| it == name)).map(|(feature, _)| feature)
}

/// Every feature.
pub fn features() -> impl Iterator<Item = Feature> {
    all().map(|(feature, _)| feature)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_found_however_they_are_spelled() {
        let bit = |name| find(name).map(|f| (f.function, f.index, f.reg, f.bit));
        assert_eq!(bit("smap"), Some((7, 0, Reg::Ebx, 20)));
        assert_eq!(bit("SSE4_2"), bit("sse4.2"));
        assert_eq!(bit("pni"), Some((1, 0, Reg::Ecx, 0)));
        assert_eq!(bit("tsc-deadline"), Some((1, 0, Reg::Ecx, 24)));
        assert_eq!(bit("hypervisor"), Some((1, 0, Reg::Ecx, 31)));
        assert_eq!(bit("avx512vl"), Some((7, 0, Reg::Ebx, 31)));
        assert_eq!(bit("pks"), Some((7, 0, Reg::Ecx, 31)));
        assert_eq!(bit("ssbd"), Some((7, 0, Reg::Edx, 31)));
        assert_eq!(bit("lam"), Some((7, 1, Reg::Eax, 26)));
        assert_eq!(bit("nx"), Some((0x8000_0001, 0, Reg::Edx, 20)));
        assert_eq!(bit("lm"), Some((0x8000_0001, 0, Reg::Edx, 29)));
        assert_eq!(bit("mwaitx"), Some((0x8000_0001, 0, Reg::Ecx, 29)));
        assert_eq!(bit("vgif"), Some((0x8000_000A, 0, Reg::Edx, 16)));
        assert_eq!(bit("virt-ssbd"), Some((0x8000_0008, 0, Reg::Ebx, 25)));
        assert_eq!(bit("kvm-pv-eoi"), Some((0x4000_0001, 0, Reg::Eax, 6)));
        assert_eq!(bit("kvmclock-stable-bit"), Some((0x4000_0001, 0, Reg::Eax, 24)));
        assert_eq!(bit("."), None);
        assert_eq!(bit(""), None);
    }

    #[test]
    fn no_name_is_twice_in_the_table() {
        let mut seen = BTreeSet::new();
        for (feature, names) in all() {
            assert!(feature.bit < 32, "{names}");
            for name in names.split('|') {
                assert!(seen.insert(name), "{name}");
            }
        }
    }
}

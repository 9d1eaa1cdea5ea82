//! Every fixed guest-physical address, in ascending order.
//!
//! What boot protocols place themselves (page tables, information blocks, modules) is
//! not fixed: it goes where the image leaves room, see `boot::place`.

/// Real-mode interrupt vector table (Intel SDM Vol. 3A 21.1.4).
pub const IVT: u64 = 0;
/// BIOS data area; the word at +0x0E is the EBDA's segment, at +0x13 the base memory in KiB.
pub const BDA: u64 = 0x400;
/// Where a BIOS loads a boot sector.
pub const BOOT_SECTOR: u64 = 0x7C00;
/// Preferred start of the boot block: what a boot protocol leaves for the guest to read.
pub const BOOT_BLOCK: u64 = 0x8_0000;
/// End of the RAM below 640 KiB that memory maps show: the extended BIOS data area follows.
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// Start of VGA memory and ROM space: RAM here, but no memory map shows it.
pub const VGA_START: u64 = 0xA_0000;
/// ACPI tables, the RSDP first: where a search of the ROM space begins (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: u64 = 0xE_0000;
/// The stub that answers BIOS calls of a boot sector.
pub const BIOS_STUB: u64 = 0xF_0000;
/// First byte above 1 MiB: where kernels are loaded.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// Start of the 32-bit hole: RAM above 3 GiB continues at 4 GiB.
pub const HOLE_START: u64 = 0xC000_0000;
/// First I/O APIC (KVM's in-kernel one sits at this address).
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Local APIC at reset (Intel SDM Vol. 3A 11.4.1).
pub const LOCAL_APIC: u64 = 0xFEE0_0000;
/// A page where a memory slot may come and go while no vCPU runs.
pub const SPARE_PAGE: u64 = 0xFEF0_0000;
/// Three pages that VT-x without "unrestricted guest" needs for real mode (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xFFFB_D000;
/// End of the 32-bit hole.
pub const HOLE_END: u64 = 0x1_0000_0000;

const _: () = {
    let ascending = [
        IVT,
        BDA,
        BOOT_SECTOR,
        BOOT_BLOCK,
        LOW_RAM_END,
        VGA_START,
        ACPI_TABLES,
        BIOS_STUB,
        HIGH_RAM_START,
        HOLE_START,
        IOAPIC,
        LOCAL_APIC,
        SPARE_PAGE,
        KVM_TSS,
        HOLE_END,
    ];
    let mut i = 1;
    while i < ascending.len() {
        assert!(ascending[i - 1] < ascending[i]);
        i += 1;
    }
};

//! ACPI tables (ACPI 6.5, chapter 5): what processors, interrupt controllers, timers and
//! power-off a machine has. Called by the protocols, through the placer, for the tables and for
//! the address that each protocol hands over; knows no device, only what [`Hardware`] says.
//!
//! | table | says |
//! |---|---|
//! | RSDP | at the start of the tables' area, where a search of 0xE0000 to 0xFFFFF finds it |
//! | XSDT, RSDT | the same tables twice, for 64-bit and 32-bit readers |
//! | FADT | ports of power-off, timer and reset; the machine is always in ACPI mode |
//! | FACS | where a machine that was suspended to RAM goes on; the guest writes it |
//! | MADT | local APICs, I/O APIC, its inputs as they are on the ISA bus; only with local APICs |
//! | DSDT | the states S3 and S5, COM1 |

mod dsdt;
mod madt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::mem::{Bytes, GuestAddress, GuestMemory, layout};

/// Who made the tables.
const OEM: [u8; 6] = *b"RNGFNC";
/// For which machine.
const TABLE: [u8; 8] = *b"RINGFENC";
const REVISION: u32 = 1;

/// Bytes of a table's header.
const HEADER: u32 = 36;

/// Bytes of the RSDP, and of the one of ACPI 1.0, which is its beginning.
pub(super) const RSDP_LEN: usize = 36;
pub(super) const RSDP_1_LEN: usize = 20;

/// Where the FACS begins: it is the first table after the RSDP.
const FACS_OFFSET: u64 = 64;
/// FACS: Firmware_Waking_Vector (ACPI 6.5, table 5.13), 32 bits.
const WAKING_VECTOR: u64 = 12;

/// Where a guest that was suspended to RAM goes on, in real mode: segment and offset (ACPI 6.5,
/// 16.3.1). `None` where it left no address that real mode has, or there is no FACS. The vector
/// of 64 bits, for protected mode, is not looked at.
pub fn waking_vector(memory: &GuestMemory) -> Option<(u16, u16)> {
    let facs = GuestAddress(layout::ACPI_TABLES + FACS_OFFSET);
    let signature: [u8; 4] = memory.read_obj(facs).ok()?;
    let vector: u32 = memory.read_obj(GuestAddress(facs.0 + WAKING_VECTOR)).ok()?;
    let segment = u16::try_from(vector >> 4).ok()?;
    (signature == *b"FACS" && vector != 0).then_some((segment, vector as u16 & 0xF))
}

/// Ports that the FADT names.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// PM1 event registers, 4 bytes.
    pub pm_event: u16,
    /// PM1 control register, 2 bytes.
    pub pm_control: u16,
    /// PM timer, 4 bytes.
    pub pm_timer: u16,
    /// Reset register, 1 byte.
    pub reset: u16,
}

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// Processors; their APIC IDs count from 0.
    pub cpus: u32,
    /// Has each a local APIC?
    pub local_apics: bool,
    /// Are there an I/O APIC and two 8259s?
    pub io_apic: bool,
    /// Ports.
    pub ports: Ports,
}

/// Every table, for the address `base` (a multiple of 64); the RSDP is the first.
pub(super) fn tables(base: u64, hardware: &Hardware) -> Vec<u8> {
    let mut area = Area { base, bytes: vec![0; RSDP_LEN] };
    let facs = area.add(&FACS::new());
    let dsdt = area.add(&dsdt::table());
    let mut listed = vec![area.add(&fadt(facs, dsdt, &hardware.ports))];
    if hardware.local_apics {
        listed.push(area.add(&madt::table(hardware)));
    }
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    let mut rsdt = Sdt::new(*b"RSDT", HEADER, 1, OEM, TABLE, REVISION);
    for address in listed {
        xsdt.add_entry(address);
        rsdt.append_slice(&(address as u32).to_le_bytes());
    }
    let (xsdt, rsdt) = (area.add(&xsdt), area.add(&rsdt));
    let rsdp = rsdp(rsdt, xsdt);
    area.bytes[..RSDP_LEN].copy_from_slice(&rsdp);
    area.bytes
}

/// Tables one after the other.
struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    /// The strictest alignment of any table: the FACS's (ACPI 6.5, 5.2.10).
    const ALIGN: usize = 64;

    /// Adds a table; gives its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(Self::ALIGN), 0);
        let at = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        at
    }
}

/// The library's leaves the RSDT's address out (ACPI 6.5, table 5.3: address at 16, checksum of
/// the first 20 bytes at 8, of all at 32).
fn rsdp(rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut bytes);
    bytes[16..20].copy_from_slice(&(rsdt as u32).to_le_bytes());
    for (at, len) in [(8, RSDP_1_LEN), (32, RSDP_LEN)] {
        bytes[at] = 0;
        bytes[at] = bytes[..len].iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    }
    bytes
}

fn fadt(facs: u64, dsdt: u64, ports: &Ports) -> acpi_tables::fadt::FADT {
    /// The interrupt of ACPI events, as on every PC; none is ever raised.
    const SCI: u16 = 9;
    /// There are ISA devices, and an i8042 (table 5.11).
    const LEGACY_DEVICES_AND_I8042: u16 = 1 << 0 | 1 << 1;
    /// Without a VGA.
    const NO_VGA: u16 = 1 << 2;
    /// The century in the CMOS.
    const CENTURY: u8 = 0x32;
    /// What makes the reset register reset: reset, and the processors too.
    const RESET: u8 = 0x06;
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .preferred_pm_profile(PmProfile::Unspecified);
    table.x_dsdt = dsdt.into();
    table.sci_int = SCI.into();
    (table.pm1a_evt_blk, table.pm1_evt_len) = (u32::from(ports.pm_event).into(), 4);
    (table.pm1a_cnt_blk, table.pm1_cnt_len) = (u32::from(ports.pm_control).into(), 2);
    (table.pm_tmr_blk, table.pm_tmr_len) = (u32::from(ports.pm_timer).into(), 4);
    // "A value > 100 (> 1000) indicates the system does not support a C2 (C3) state."
    (table.p_lvl2_lat, table.p_lvl3_lat) = (0xFFF.into(), 0xFFF.into());
    table.century = CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES_AND_I8042 | NO_VGA).into();
    let port = ports.reset.into();
    table.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    table.reset_value = RESET;
    // No button in the fixed registers (Pwr, Slp say "not there"); the clock's alarm is.
    let flags = [
        Flags::Wbinvd,
        Flags::ProcC1,
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::TmrValExt,
        Flags::ResetRegSup,
    ];
    flags.into_iter().fold(table, FADTBuilder::flag).finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xE_0000;

    fn hardware(cpus: u32, local_apics: bool, io_apic: bool) -> Hardware {
        let ports = Ports { pm_event: 0x600, pm_control: 0x604, pm_timer: 0x608, reset: 0xCF9 };
        Hardware { cpus, local_apics, io_apic, ports }
    }

    fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
        bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at an address, its checksum checked.
    fn table(all: &[u8], address: u64) -> &[u8] {
        let at = (address - BASE) as usize;
        let table = &all[at..at + number(all, at + 4, 4) as usize];
        assert_eq!(sum(table), 0, "{:?}", std::str::from_utf8(&table[..4]));
        table
    }

    /// The tables that XSDT and RSDT list, by signature.
    fn listed(all: &[u8]) -> Vec<(&str, &[u8])> {
        assert_eq!((&all[..8], sum(&all[..20]), sum(&all[..36])), (&b"RSD PTR "[..], 0, 0));
        let addresses = |at, size, width: usize| {
            let list = &table(all, number(all, at, size))[36..];
            list.chunks(width).map(|entry| number(entry, 0, width)).collect::<Vec<_>>()
        };
        let (from_rsdt, from_xsdt) = (addresses(16, 4, 4), addresses(24, 8, 8));
        assert_eq!(from_rsdt, from_xsdt);
        let named = |address| {
            let table = table(all, address);
            (std::str::from_utf8(&table[..4]).unwrap(), table)
        };
        from_xsdt.into_iter().map(named).collect()
    }

    #[test]
    fn every_table_is_found_and_sound() {
        let all = tables(BASE, &hardware(2, true, true));
        let found = listed(&all);
        assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["FACP", "APIC"]);
        let fadt = found[0].1;
        let port = |at| number(fadt, at, 4);
        assert_eq!([port(56), port(64), port(76)], [0x600, 0x604, 0x608]);
        assert_eq!((number(fadt, 116 + 4, 8), fadt[128]), (0xCF9, 6), "the reset register");
        let facs = number(fadt, 36, 4);
        assert_eq!(facs % 64, 0);
        assert_eq!(facs, BASE + FACS_OFFSET);
        assert_eq!(&all[(facs - BASE) as usize..][..4], b"FACS");
        assert_eq!(number(fadt, 40, 4), number(fadt, 140, 8));
        assert_eq!(&table(&all, number(fadt, 40, 4))[..4], b"DSDT");
    }

    #[test]
    fn the_waking_vector_is_the_guest_s() {
        let memory = crate::mem::create(1 << 20).unwrap();
        let vector = GuestAddress(BASE + FACS_OFFSET + WAKING_VECTOR);
        memory.write_obj(0x1234_u32, vector).unwrap();
        assert_eq!(waking_vector(&memory), None, "without a FACS");
        memory.write_slice(&tables(BASE, &hardware(1, true, true)), GuestAddress(BASE)).unwrap();
        for (address, expected) in
            [(0, None), (0x1234, Some((0x123, 4))), (0xF_FFFF, Some((0xFFFF, 15))), (1 << 20, None)]
        {
            memory.write_obj(address, vector).unwrap();
            assert_eq!(waking_vector(&memory), expected, "{address:#x}");
        }
    }

    #[test]
    fn without_local_apics_there_is_no_madt() {
        let all = tables(BASE, &hardware(1, false, false));
        assert_eq!(listed(&all).len(), 1);
    }

    #[test]
    fn the_largest_machine_s_tables_fit() {
        use crate::mem::layout::{ACPI_TABLES, BIOS_STUB};
        let all = tables(BASE, &hardware(4096, true, true));
        assert!(all.len() as u64 <= BIOS_STUB - ACPI_TABLES, "{}", all.len());
        listed(&all);
    }
}

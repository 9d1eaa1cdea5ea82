//! The MADT (ACPI 6.5, 5.2.12): processors and interrupt controllers.

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{HEADER, Hardware, OEM, REVISION, TABLE};
use crate::mem::layout;

/// The last APIC ID of a processor that has no need of x2APIC; 255 is everybody.
const LAST_XAPIC_ID: u32 = 254;
/// There are two 8259s beside the I/O APIC.
const PCAT_COMPAT: u32 = 1 << 0;
/// Its number; no processor's is above 255.
const IO_APIC_ID: u8 = 0;

pub(super) fn table(hardware: &Hardware) -> Sdt {
    let flags = if hardware.io_apic { PCAT_COMPAT } else { 0 };
    let mut body = [layout::LOCAL_APIC as u32, flags].map(u32::to_le_bytes).concat();
    for id in 0..hardware.cpus {
        match u8::try_from(id) {
            Ok(id) if u32::from(id) <= LAST_XAPIC_ID => {
                ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
            }
            _ => body.extend(local_x2apic(id)),
        }
    }
    if hardware.io_apic {
        IoApic::new(IO_APIC_ID, layout::IOAPIC as u32, 0).to_aml_bytes(&mut body);
    }
    body.extend(LOCAL_APIC_NMI);
    let mut table = Sdt::new(*b"APIC", HEADER, 5, OEM, TABLE, REVISION);
    table.append_slice(&body);
    table
}

/// Table 5.37: type, length, reserved, x2APIC ID, flags (enabled), processor's UID.
fn local_x2apic(id: u32) -> Vec<u8> {
    const ENABLED: u32 = 1;
    let mut bytes = vec![9, 16, 0, 0];
    bytes.extend([id, ENABLED, id].map(u32::to_le_bytes).concat());
    bytes
}

/// Table 5.32: type, length, every processor, flags as the bus has them, LINT1.
const LOCAL_APIC_NMI: [u8; 6] = [4, 6, 0xFF, 0, 0, 1];

#[cfg(test)]
mod tests {
    use super::super::Ports;
    use super::*;

    /// Every structure of the MADT: type and the rest.
    fn structures(cpus: u32, io_apic: bool) -> Vec<(u8, Vec<u8>)> {
        let ports = Ports { pm_event: 0, pm_control: 0, pm_timer: 0, reset: 0 };
        let table = table(&Hardware { cpus, local_apics: true, io_apic, ports });
        assert_eq!(table.as_slice()[36..40], 0xFEE0_0000_u32.to_le_bytes());
        let mut rest = &table.as_slice()[44..];
        let mut found = Vec::new();
        while let [kind, len, ..] = *rest {
            found.push((kind, rest[2..len.into()].to_vec()));
            rest = &rest[len.into()..];
        }
        found
    }

    #[test]
    fn each_processor_is_listed() {
        let found = structures(2, true);
        assert_eq!(found[0], (0, vec![0, 0, 1, 0, 0, 0]));
        assert_eq!(found[1], (0, vec![1, 1, 1, 0, 0, 0]));
        assert_eq!(found[2], (1, vec![0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]));
        assert_eq!((found[3].0, found.len()), (4, 4));
        assert_eq!(structures(1, false).len(), 2);
    }

    #[test]
    fn beyond_254_they_are_x2apics() {
        let found = structures(300, true);
        assert_eq!(found[254], (0, vec![254, 254, 1, 0, 0, 0]));
        assert_eq!(found[255], (9, vec![0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]));
        assert_eq!(found[299].0, 9);
    }
}

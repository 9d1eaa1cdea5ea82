//! The DSDT: what the fixed tables have no field for, in AML (ACPI 6.5, chapter 20).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::{HEADER, OEM, REVISION, TABLE};

/// COM1, as on every PC.
const COM1: (u16, u8, u32) = (0x3F8, 8, 4);

pub(super) fn table() -> Sdt {
    let mut body = Vec::new();
    // SLP_TYP of a state, for both control registers; the other two are reserved.
    for (state, sleep_type) in [("_S3_", 1_u8), ("_S5_", 0)] {
        let package = Package::new(vec![&sleep_type, &sleep_type, &0_u8, &0_u8]);
        Name::new(Path::new(state), &package).to_aml_bytes(&mut body);
    }
    let (port, len, gsi) = COM1;
    let resources: [&dyn Aml; 2] =
        [&IO::new(port, port, 1, len), &Interrupt::new(true, true, false, false, gsi)];
    Scope::new(
        Path::new("\\_SB_"),
        vec![&Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &1_u8),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec())),
            ],
        )],
    )
    .to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", HEADER, 2, OEM, TABLE, REVISION);
    table.append_slice(&body);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_s3_s5_and_com1() {
        let table = table();
        let has = |bytes: &[u8]| table.as_slice().windows(bytes.len()).any(|it| it == bytes);
        // NameOp, "_S3_", PackageOp, length 6, four elements: two ones, two zeroes.
        assert!(has(b"\x08_S3_\x12\x06\x04\x01\x01\x00\x00"), "{:02x?}", table.as_slice());
        // NameOp, "_S5_", PackageOp, length 6, four elements: zeroes.
        assert!(has(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"), "{:02x?}", table.as_slice());
        assert!(has(b"COM1"));
        assert!(has(&[0x47, 0x01, 0xF8, 0x03, 0xF8, 0x03, 1, 8]));
    }
}

//! The least of a BIOS that a boot sector needs: interrupt vectors, the words of the BIOS
//! data area that tell the memory's size, and a stub that prints characters.
//!
//! Services: int 10h with AH = 0Eh writes AL to the debug console at port 0xE9; every other
//! service of int 10h to 1Fh answers "not supported" (carry set, AH = 86h). Interrupts of
//! the two 8259s are acknowledged and otherwise ignored; so is everything else.

use super::Error;
use super::place::Placer;
use crate::mem::{Range, layout};

/// Assembled for offset 0 of segment F000h.
#[rustfmt::skip]
const STUB: &[u8] = &[
    // int_10h:
    0x80, 0xFC, 0x0E,       // 00: cmp ah, 0x0E
    0x75, 0x03,             // 03: jne unsupported
    0xE6, 0xE9,             // 05: out 0xE9, al
    0xCF,                   // 07: iret
    // unsupported: the flags that iret restores are the third word pushed by int
    0x55,                   // 08: push bp
    0x89, 0xE5,             // 09: mov bp, sp
    0x80, 0x4E, 0x06, 0x01, // 0B: or byte [bp + 6], 1
    0x5D,                   // 0F: pop bp
    0xB4, 0x86,             // 10: mov ah, 0x86
    0xCF,                   // 12: iret
    // second_8259: both are told of the end of the interrupt (OCW2 0x20)
    0x50,                   // 13: push ax
    0xB0, 0x20,             // 14: mov al, 0x20
    0xE6, 0xA0,             // 16: out 0xA0, al
    0xEB, 0x03,             // 18: jmp 0x1D
    // first_8259:
    0x50,                   // 1A: push ax
    0xB0, 0x20,             // 1B: mov al, 0x20
    0xE6, 0x20,             // 1D: out 0x20, al
    0x58,                   // 1F: pop ax
    // ignore:
    0xCF,                   // 20: iret
];

const INT_10H: u16 = 0x00;
const UNSUPPORTED: u16 = 0x08;
const SECOND_8259: u16 = 0x13;
const FIRST_8259: u16 = 0x1A;
const IGNORE: u16 = 0x20;

const VECTORS: u64 = 256;
const BDA_SIZE: u64 = 0x100;

/// Places vectors, data area and stub.
pub(super) fn put(placer: &mut Placer<'_>) -> Result<(), Error> {
    let segment = (layout::BIOS_STUB >> 4) as u16;
    let vectors: Vec<u8> = (0..VECTORS)
        .flat_map(|vector| {
            let offset = match vector {
                0x08..=0x0F => FIRST_8259,
                0x10 => INT_10H,
                0x11..=0x1F => UNSUPPORTED,
                0x70..=0x77 => SECOND_8259,
                _ => IGNORE,
            };
            [offset.to_le_bytes(), segment.to_le_bytes()].concat()
        })
        .collect();
    let size = vectors.len() as u64;
    placer.put_at("interrupt vectors", layout::IVT, &vectors, size)?;
    placer.claim("BIOS data", Range { start: layout::BDA, end: layout::BDA + BDA_SIZE })?;
    let ebda = (layout::LOW_RAM_END >> 4) as u16;
    let base_kib = (layout::LOW_RAM_END >> 10) as u16;
    placer.write("BIOS data", layout::BDA + 0x0E, &ebda.to_le_bytes())?;
    placer.write("BIOS data", layout::BDA + 0x13, &base_kib.to_le_bytes())?;
    placer.put_at("BIOS stub", layout::BIOS_STUB, STUB, STUB.len() as u64)?;
    Ok(())
}

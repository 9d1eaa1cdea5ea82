//! Page walks, and what they map.

use super::*;

#[test]
fn walks_end_where_the_tables_do() {
    let (memory, mut state) = long_mode(&[]);
    put(&memory, PT + 5 * 8, 0_u64);
    put(&memory, PT + 6 * 8, 0x6003_u64 | 1 << 45);
    put(&memory, PT + 7 * 8, 0x7001_u64 | 1 << 63);
    let space = AddressSpace::new(&memory, &state);
    assert_eq!(space.walk(0x5000).end, End::NotPresent);
    assert_eq!(space.walk(0x6000).end, End::Reserved { bit: 45 });
    assert_eq!(space.walk(1 << 47).end, End::NotCanonical);
    assert_eq!(space.walk(0xFFFF_8000_0000_0000).end, End::NotPresent);
    assert_eq!(space.walk(0x4123).levels.len(), 4);
    assert_eq!(space.translate(0x4123, Access::Write, false), Ok(0x4123));
    let code = |address, access, user| space.translate(address, access, user).unwrap_err().code;
    assert_eq!(code(0x5000, Access::Write, false), 0b00010);
    assert_eq!(code(0x6000, Access::Read, false), 0b01001);
    assert_eq!(code(0x7000, Access::Execute, false), 0b10001);
    assert_eq!(code(0x7000, Access::Write, false), 0b00011);
    assert_eq!(code(0x4000, Access::Read, true), 0b00101);
    state.cr0 -= Cr0::WP;
    assert!(AddressSpace::new(&memory, &state).translate(0x7000, Access::Write, false).is_ok());
}

#[test]
fn a_page_of_a_gigabyte_is_reserved_where_cpuid_has_none() {
    // mov rax, [rax]
    let (memory, mut state) = long_mode(&[0x48, 0x8B, 0x00]);
    put(&memory, PDPT + 8, 0x4000_0083_u64);
    state.regs.rax = 0x4000_0000;
    let walk = |state: &CpuState| AddressSpace::new(&memory, state).walk(0x4000_0000).end;
    assert!(matches!(walk(&state), End::Page { size: 0x4000_0000, .. }));
    state.paging_features.gigabyte_pages = false;
    assert_eq!(walk(&state), End::Reserved { bit: 7 });
    let text = summary(&memory, &state);
    let start = "page fault at 0x40000000 (read, reserved bit 7 is set in its PDPT entry) at";
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn walks_in_every_kind_of_paging() {
    let (memory, mut state) = long_mode(&[]);
    state.efer = Efer::empty();
    put(&memory, 0x10020, 0x3001_u64);
    state.cr3 = 0x10020; // PAE's top table is aligned to 32 bytes only
    let physical =
        |state: &CpuState, linear| match AddressSpace::new(&memory, state).walk(linear).end {
            End::Page { physical, .. } => physical,
            other => panic!("{other:?}"),
        };
    assert_eq!(Paging::of(&state), Paging::Pae);
    assert_eq!(physical(&state, 0x1_2345), 0x1_2345);
    state.cr4 = Cr4::PSE;
    state.cr3 = 0x1_1000;
    put(&memory, 0x1_1000 + 4, 0x0040_0083_u32 - 0x0040_0000);
    put(&memory, 0x1_1000 + 8, 0x0001_2003_u32);
    put(&memory, 0x1_2000 + 4 * 3, 0x0001_5003_u32);
    assert_eq!(Paging::of(&state), Paging::TwoLevel);
    assert_eq!(physical(&state, 0x40_1234), 0x1234);
    assert_eq!(physical(&state, 0x80_3456), 0x1_5456);
    state.cr0 -= Cr0::PG;
    assert_eq!(physical(&state, 0x1234), 0x1234);
}

#[test]
fn mappings_are_what_the_tables_map() {
    let (memory, state) = long_mode(&[]);
    put(&memory, PT + 5 * 8, 0_u64);
    put(&memory, PT + 8 * 8, 0x1_0003_u64);
    put(&memory, PD + 8, 0x4000_0083_u64); // a large page where no memory is
    put(&memory, PML4 + 511 * 8, PDPT | 3);
    let mapping = |linear, physical, len| Mapping { linear, physical, len };
    let high = !0 << 39;
    let low = [
        mapping(0, 0, 0x5000),
        mapping(0x6000, 0x6000, 0x2000),
        mapping(0x8000, 0x1_0000, 0x1000),
        mapping(0x9000, 0x9000, 0x20_0000 - 0x9000),
    ];
    let again = low.map(|it| Mapping { linear: it.linear | high, ..it });
    assert_eq!(mappings(&AddressSpace::new(&memory, &state)), [low, again].concat());
}

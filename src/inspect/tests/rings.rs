//! Rings: what only some may run, gates that are not for all, stacks from the TSS.

use super::super::follow::leaves_to;
use super::*;

const TSS: u64 = 0x7000;

/// Ring 3 of long mode, with a TSS.
fn ring_3(code: &[u8]) -> (GuestMemory, CpuState) {
    let (memory, mut state) = long_mode(code);
    for table in [PML4, PDPT, PD] {
        let entry: u64 = memory.read_obj(GuestAddress(table)).unwrap();
        put(&memory, table, entry | 4);
    }
    put(&memory, PT + (CODE >> 12) * 8, CODE | 7);
    (state.cs.dpl, state.ss.dpl) = (3, 3);
    state.tr = Segment { base: TSS, limit: 0x2FF, ..Segment::task(24) };
    put(&memory, TSS + 102, 104_u16);
    put(&memory, TSS + 4, 0xA000_u64); // RSP0
    (memory, state)
}

fn words(code: &[u8], change: impl Fn(&GuestMemory, &mut CpuState)) -> Option<String> {
    let (memory, mut state) = ring_3(code);
    change(&memory, &mut state);
    let space = AddressSpace::new(&memory, &state);
    Standing::new(space, &state).fault().map(|fault| fault.words())
}

#[test]
fn ports_and_the_interrupt_flag_are_iopls_and_the_bitmaps() {
    let iopl = |_: &GuestMemory, cpu: &mut CpuState| {
        cpu.rflags |= Rflags::from_bits_retain(3 << 12);
    };
    let port_taken = |memory: &GuestMemory, _: &mut CpuState| put(memory, TSS + 104 + 12, 1_u8);
    let none = |_: &GuestMemory, _: &mut CpuState| {};
    let (cli, in_0x60, in_0x5f_2) = (&[0xFA], &[0xE4, 0x60], &[0x66, 0xE5, 0x5F]);
    let general = |text: &str| Some(format!("general protection fault ({text} in ring 3)"));
    assert_eq!(words(cli, none), general("cli"));
    assert_eq!(words(cli, iopl), None);
    assert_eq!(words(cli, |_, cpu| cpu.cr4 |= Cr4::PVI), None);
    assert_eq!(words(cli, |_, cpu| cpu.cr4 |= Cr4::VME), general("cli"));
    assert_eq!(words(&[0xF4], iopl), general("hlt"));
    assert_eq!(words(in_0x60, none), None);
    assert_eq!(words(in_0x60, port_taken), general("in al, 0x60"));
    assert_eq!(words(in_0x5f_2, port_taken), general("in ax, 0x5f"));
    assert_eq!(words(in_0x60, |memory, cpu| (port_taken(memory, cpu), iopl(memory, cpu)).0), None);
    // The bitmap ends before it: two bytes are read.
    assert_eq!(words(in_0x60, |_, cpu| cpu.tr.limit = 104 + 12), general("in al, 0x60"));
    assert_eq!(words(in_0x60, |_, cpu| cpu.tr.limit = 104 + 13), None);
    // out dx, al
    assert_eq!(words(&[0xEE], |_, cpu| cpu.regs.rdx = 0x3F8), None);
    assert_eq!(words(&[0xEE], |_, cpu| cpu.regs.rdx = 0x8000), general("out dx, al"));
}

#[test]
fn a_software_interrupt_wants_a_gate_that_is_for_its_ring() {
    let (memory, state) = ring_3(&[0xCD, 0x80]); // int 0x80
    put(&memory, GDT + 8, Segment::code64(8).descriptor());
    gate(&memory, 0x80, 8, CODE, 0x8E);
    let text = summary(&memory, &state);
    assert!(
        text.starts_with(
            "interrupt 0x80 (int 0x80) at 0x8000; its handler could not be entered: IDT entry 128 \
             is for ring 0 and below (its DPL), and this is ring 3; then general protection fault: \
             IDT entry 13 is empty"
        ),
        "{text}"
    );
    let chain = |vector| {
        let space = AddressSpace::new(&memory, &state);
        delivery::chain(&space, &state, super::super::fault::Fault::software(vector, "int"))
    };
    let attempt = &chain(0x80).attempts[0];
    assert_eq!(attempt.raised.as_ref().unwrap().error_code, Some(0x402));
    // It goes on in #GP's handler; with a gate of ring 3's in its own.
    gate(&memory, PROTECTION.into(), 8, CODE + 0x10, 0x8E);
    assert_eq!(leaves_to(&memory, &state).unwrap().linear, CODE + 0x10);
    gate(&memory, 0x80, 8, CODE + 0x20, 0xEE);
    assert_eq!(leaves_to(&memory, &state).unwrap().linear, CODE + 0x20);
    // Whatever its number, it is no exception: no code, no double fault.
    let attempts = chain(14).attempts;
    let event = &attempts[0].event;
    assert_eq!((event.error_code, event.words().as_str()), (None, "interrupt 0xe (int)"));
    assert_eq!(attempts[1].event.vector, PROTECTION);
}

/// Ring 3 of protected mode without paging, whose stack for ring 0 is this.
fn protected(stack: u32, selector: u16) -> String {
    let (memory, mut state) = ring_3(&[0x0F, 0x0B]);
    (state.efer, state.cr0) = (Efer::empty(), Cr0::PE);
    state.cs = Segment { dpl: 3, ..Segment::code32(11) };
    put(&memory, GDT + 8, Segment::code32(8).descriptor());
    for vector in [6, 8, 10, 12, 13, 14] {
        put(&memory, IDT + vector * 8, CODE & 0xFFFF | 8 << 16 | 0x8E << 40);
    }
    put(&memory, TSS + 4, stack);
    put(&memory, TSS + 8, selector);
    let mut tables = state.gdt;
    tables.limit = 31;
    state.gdt = tables;
    put(&memory, GDT + 24, Segment::data32(27).descriptor() & !(1 << 41));
    let space = AddressSpace::new(&memory, &state);
    let event = Standing::new(space, &state).fault().unwrap();
    let chain = delivery::chain(&space, &state, event);
    let obstacle = chain.attempts[0].obstacle.clone();
    obstacle.unwrap_or_else(|| format!("{:#x}", chain.attempts[0].stack.unwrap()))
}

#[test]
fn stacks_of_a_tss_of_protected_mode() {
    assert_eq!(protected(0xA000, 16), "0xa000");
    // It wraps around.
    assert_eq!(protected(0, 16), "0x0");
    let has = |text: &str| format!("ring 0's stack in the TSS has segment {text}");
    assert_eq!(protected(0xA000, 24), has("0x18, which is a data segment that cannot be written"));
    assert_eq!(protected(0xA000, 8), has("0x8, which is a code segment"));
    assert_eq!(protected(0xA000, 19), has("0x13, which is asked for as ring 3"));
}

#[test]
fn far_returns_and_iret_take_what_is_theirs() {
    let (memory, mut state) = long_mode(&[0xCA, 4, 0]); // retf 4
    (state.efer, state.cr0) = (Efer::empty(), Cr0::PE);
    state.cs = Segment::code32(8);
    put(&memory, GDT + 8, Segment::code32(8).descriptor());
    put(&memory, 0x9000, [CODE as u32, 8]);
    let fault = |state: &CpuState| {
        Standing::new(AddressSpace::new(&memory, state), state).fault().map(|it| it.words())
    };
    assert_eq!(fault(&state), None);
    put(&memory, 0x9000, [CODE as u32, 0x48]);
    assert!(fault(&state).unwrap().contains("far return to 0x48"));
    // iretd to virtual-8086 mode, at 0700:0010
    memory.write_slice(&[0xCF], GuestAddress(CODE)).unwrap();
    put(&memory, 0x9000, [0x10_u32, 0x700, 0x2_0002]);
    assert_eq!(fault(&state), None);
    let to = leaves_to(&memory, &state).unwrap();
    assert_eq!((to.linear, to.ring), (0x7010, 3));
    put(&memory, 0x9000, [0x10_u32, 0x700, 2]);
    assert!(fault(&state).unwrap().contains("iret to 0x700"));
}

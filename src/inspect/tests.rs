//! Deaths made by hand: page tables, descriptor tables and code in guest memory, no KVM.

use super::fault::{PAGE, PROTECTION, Standing};
use super::walk::{Access, AddressSpace, End, Paging};
use super::{
    Autopsy, Cpu, Ending, Mapping, Registers, Source, Subject, Symbols, delivery, mappings,
};
use crate::kvm::Events;
use crate::mem::{self, Bytes, GuestAddress, GuestMemory};
use crate::x86::{CpuInit, CpuState, Cr0, Cr4, DescriptorTable, Efer, Regs, Rflags, Segment};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const CODE: u64 = 0x8000;

fn put<T: vm_memory::ByteValued>(memory: &GuestMemory, at: u64, value: T) {
    memory.write_obj(value, GuestAddress(at)).unwrap();
}

/// The low 2 MiB mapped by 4 KiB pages, a GDT with code and data, code at CODE.
fn long_mode(code: &[u8]) -> (GuestMemory, CpuState) {
    let memory = mem::create(2 << 20).unwrap();
    put(&memory, PML4, PDPT | 3);
    put(&memory, PDPT, PD | 3);
    put(&memory, PD, PT | 3);
    for page in 0..512_u64 {
        put(&memory, PT + page * 8, page << 12 | 3);
    }
    put(&memory, GDT + 8, Segment::code64(8).descriptor());
    put(&memory, GDT + 16, Segment::data32(16).descriptor());
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    let init = CpuInit::long(CODE, PML4, 8, 16);
    let state = CpuState {
        regs: Regs { rip: CODE, rsp: 0x9000, ..Regs::default() },
        rflags: Rflags::ONE,
        cs: init.cs,
        ds: init.data,
        es: init.data,
        fs: init.data,
        gs: init.data,
        ss: init.ss,
        tr: Segment::task(0),
        ldt: Segment::no_ldt(),
        gdt: DescriptorTable { base: GDT, limit: 23 },
        idt: DescriptorTable { base: IDT, limit: 0xFFF },
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr2: 0,
        cr3: PML4,
        cr4: Cr4::PAE,
        cr8: 0,
        efer: Efer::LME | Efer::LMA | Efer::NXE,
        apic_base: 0,
    };
    (memory, state)
}

/// Makes an interrupt gate.
fn gate(memory: &GuestMemory, vector: u64, selector: u64, handler: u64, access: u64) {
    let low = handler & 0xFFFF | selector << 16 | access << 40 | (handler >> 16 & 0xFFFF) << 48;
    put(memory, IDT + vector * 16, low);
    put(memory, IDT + vector * 16 + 8, handler >> 32);
}

fn page(memory: &GuestMemory, state: &CpuState) -> Autopsy {
    let symbols = Symbols::new();
    let cpu = Cpu {
        id: 0,
        died: true,
        registers: Registers::Whole(state.clone()),
        physical_bits: 40,
        kvm: Vec::new(),
        local_apic: None,
        events: Events::default(),
        exits: Vec::new(),
    };
    Autopsy::perform(&Subject {
        ending: Ending::TripleFault,
        memory,
        symbols: &symbols,
        source: Source::End,
        notes: Vec::new(),
        cpus: vec![cpu],
    })
}

fn summary(memory: &GuestMemory, state: &CpuState) -> String {
    page(memory, state).summary
}

#[test]
fn walks_end_where_the_tables_do() {
    let (memory, mut state) = long_mode(&[]);
    put(&memory, PT + 5 * 8, 0_u64);
    put(&memory, PT + 6 * 8, 0x6003_u64 | 1 << 45);
    put(&memory, PT + 7 * 8, 0x7001_u64 | 1 << 63);
    let space = AddressSpace::new(&memory, &state, 40);
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
    assert!(AddressSpace::new(&memory, &state, 40).translate(0x7000, Access::Write, false).is_ok());
}

#[test]
fn walks_in_every_kind_of_paging() {
    let (memory, mut state) = long_mode(&[]);
    state.efer = Efer::empty();
    put(&memory, 0x10020, 0x3001_u64);
    state.cr3 = 0x10020; // PAE's top table is aligned to 32 bytes only
    let physical =
        |state: &CpuState, linear| match AddressSpace::new(&memory, state, 40).walk(linear).end {
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
fn the_first_line_tells_the_whole_chain() {
    // mov [rax], bl
    let (memory, mut state) = long_mode(&[0x88, 0x18]);
    state.regs.rax = 0xFFFF_8000_0012_3000;
    gate(&memory, 8, 8, 0x1_0000, 0x0E);
    gate(&memory, 14, 0x48, 0x1_0000, 0x8E);
    assert_eq!(
        summary(&memory, &state),
        "page fault at 0xffff800000123000 (write, not present) at 0x8000; its handler could not \
         be entered: IDT entry 14's code segment: selector 0x48 lies beyond the GDT's limit \
         0x17; double fault: IDT entry 8 is not present; triple fault"
    );
}

#[test]
fn a_stack_that_is_not_there_stops_every_handler() {
    // push rax
    let (memory, mut state) = long_mode(&[0x50]);
    state.regs.rsp = 0x20_0008;
    for vector in [8, 14] {
        gate(&memory, vector, 8, 0x1_0000, 0x8E);
    }
    state.regs.rsp = 0x40_0000;
    let text = page(&memory, &state).to_string();
    assert!(
        text.starts_with(
            "page fault at 0x3ffff8 (write, not present) at 0x8000; its handler could not be \
             entered: its stack 0x400000 cannot be written (not present); double fault: the \
             same; triple fault"
        ),
        "{text}"
    );
    assert!(text.contains("PD[1] 0x0 <- not present"), "{text}");
    assert!(text.contains("-> 0x8000  50"), "{text}");
}

/// The fault that one instruction raises.
fn fault(code: &[u8], change: impl Fn(&GuestMemory, &mut CpuState)) -> Option<(u8, u32, String)> {
    let (memory, mut state) = long_mode(code);
    change(&memory, &mut state);
    let space = AddressSpace::new(&memory, &state, 40);
    let fault = Standing::new(space, &state).fault()?;
    Some((fault.vector, fault.error_code.unwrap_or(0), fault.words()))
}

#[test]
fn instructions_that_fault() {
    let none = |_: &GuestMemory, _: &mut CpuState| {};
    let vector = |code: &[u8]| fault(code, none).map(|(vector, ..)| vector);
    assert_eq!(vector(&[0x90]), None); // nop
    assert_eq!(vector(&[0x0F, 0x0B]), Some(6)); // ud2
    assert_eq!(vector(&[0x06]), Some(6)); // push es, none in 64-bit mode
    assert_eq!(vector(&[0xF7, 0xF1]), Some(0)); // div ecx
    assert_eq!(vector(&[0x0F, 0x58, 0xC1]), Some(6)); // addps without CR4.OSFXSR
    assert_eq!(vector(&[0xCD, 0x80]), Some(0x80)); // int 0x80
    let (vector, code, words) = fault(&[0x8E, 0xD8], |_, cpu| cpu.regs.rax = 0x48).unwrap(); // mov ds, eax
    assert_eq!((vector, code), (PROTECTION, 0x48));
    assert!(words.contains("beyond the GDT's limit"), "{words}");
    let (vector, _, words) = fault(&[0xFF, 0xE0], |_, cpu| cpu.regs.rax = 1 << 60).unwrap(); // jmp rax
    assert_eq!(vector, PROTECTION);
    assert!(words.contains("jmp rax to 0x1000000000000000, which is not canonical"), "{words}");
    let (vector, code, words) = fault(&[], |memory, cpu| {
        put(memory, PT + 0x20 * 8, 0x2_0003_u64 | 1 << 63);
        cpu.regs.rip = 0x2_0000;
    })
    .unwrap();
    assert_eq!((vector, code), (PAGE, 0x11));
    assert!(words.contains("no-execute page"), "{words}");
    let (vector, _, words) = fault(&[0x0F, 0x22, 0xD8], |_, cpu| cpu.regs.rax = 1 << 50).unwrap();
    assert_eq!(vector, PROTECTION); // mov cr3, rax
    assert!(words.contains("bit 50 lies above its 40-bit physical addresses"), "{words}");
}

#[test]
fn an_instruction_across_pages_faults_on_the_second() {
    let (_, code, words) = fault(&[], |memory, cpu| {
        memory.write_slice(&[0x48, 0xB8], GuestAddress(0x1_FFFE)).unwrap(); // mov rax, imm64
        put(memory, PT + 0x20 * 8, 0_u64);
        cpu.regs.rip = 0x1_FFFE;
    })
    .unwrap();
    assert_eq!(code, 0x10);
    assert!(words.starts_with("page fault at 0x20000 (instruction fetch, not present)"), "{words}");
}

#[test]
fn what_can_be_delivered_ends_the_chain() {
    let (memory, state) = long_mode(&[0x0F, 0x0B]);
    gate(&memory, 6, 8, 0x1_0000, 0x8E);
    let space = AddressSpace::new(&memory, &state, 40);
    let fault = Standing::new(space, &state).fault().unwrap();
    let chain = delivery::chain(&space, &state, fault);
    assert!(!chain.triple_fault);
    assert_eq!(chain.attempts.len(), 1);
    assert_eq!(chain.attempts[0].obstacle, None);
    // The interrupt stack table, in a TSS that is too short.
    let low: u64 = memory.read_obj(GuestAddress(IDT + 6 * 16)).unwrap();
    put(&memory, IDT + 6 * 16, low | 1 << 32);
    let mut short = state.clone();
    short.tr.limit = 0x1F;
    let space = AddressSpace::new(&memory, &short, 40);
    let fault = Standing::new(space, &short).fault().unwrap();
    let chain = delivery::chain(&space, &short, fault);
    let obstacle = chain.attempts[0].obstacle.as_deref();
    assert_eq!(obstacle, Some("the TSS ends before IST1 (its limit is 0x1f)"));
    assert_eq!(chain.attempts[0].raised.as_ref().map(|it| it.vector), Some(10));
}

#[test]
fn calls_are_followed_back() {
    // call rax at CODE; RIP is where no code is, the return address on the stack.
    let (memory, mut state) = long_mode(&[0xFF, 0xD0]);
    put(&memory, PT, 0_u64);
    put(&memory, 0x9000, CODE + 2);
    state.regs.rip = 0;
    let text = summary(&memory, &state);
    let start = "page fault at 0x0 (instruction fetch, not present) at 0x0, called from 0x8002; ";
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn real_mode_has_its_own_table() {
    let (memory, mut state) = long_mode(&[0xF7, 0xF1]); // div cx
    state.cr0 = Cr0::empty();
    state.cr4 = Cr4::empty();
    state.efer = Efer::empty();
    state.cs = Segment::real_code(0x800);
    state.ss = Segment::real(0);
    state.regs.rip = 0;
    state.idt = DescriptorTable { base: 0, limit: 1 };
    let text = summary(&memory, &state);
    assert!(text.starts_with("divide error (div cx by zero) at 0x0;"), "{text}");
    assert!(text.contains("the IDT ends before entry 0 (its limit is 0x1)"), "{text}");
    assert!(text.ends_with("triple fault"), "{text}");
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
    assert_eq!(mappings(&AddressSpace::new(&memory, &state, 40)), [low, again].concat());
}

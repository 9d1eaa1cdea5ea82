//! Deaths made by hand: page tables, descriptor tables and code in guest memory, no KVM.

use super::backtrace::{Cursor, frameless};
use super::fault::{PAGE, PROTECTION, Standing};
use super::walk::{Access, AddressSpace, End, Paging};
use super::{
    Autopsy, CodeMode, Cpu, Ending, Mapping, Registers, Source, Subject, Symbols, delivery,
    mappings,
};
use crate::kvm::{Backend, DebugRegisters, Events, Guard, Guarded, LocalApic};
use crate::mem::{self, Bytes, GuestAddress, GuestMemory, Range};
use crate::x86::{
    CpuInit, CpuState, Cr0, Cr4, DescriptorTable, Efer, PagingFeatures, Regs, Rflags, Segment,
};

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
        paging_features: PagingFeatures { physical_bits: 40, gigabyte_pages: true },
    };
    (memory, state)
}

/// Makes an interrupt gate.
fn gate(memory: &GuestMemory, vector: u64, selector: u64, handler: u64, access: u64) {
    let low = handler & 0xFFFF | selector << 16 | access << 40 | (handler >> 16 & 0xFFFF) << 48;
    put(memory, IDT + vector * 16, low);
    put(memory, IDT + vector * 16 + 8, handler >> 32);
}

fn cpu(id: u32, registers: Registers) -> Cpu {
    Cpu {
        id,
        died: true,
        registers,
        instruction: None,
        kvm: Vec::new(),
        local_apic: None,
        pic: Vec::new(),
        events: Events::default(),
        debug_registers: DebugRegisters::default(),
        kvm_exit: None,
        exits: Vec::new(),
    }
}

fn page(memory: &GuestMemory, state: &CpuState) -> Autopsy {
    let cpu = cpu(0, Registers::Whole(state.clone()));
    autopsy(Ending::TripleFault, Source::End, memory, vec![cpu])
}

fn autopsy(ending: Ending, source: Source, memory: &GuestMemory, cpus: Vec<Cpu>) -> Autopsy {
    guarded_autopsy(ending, source, memory, cpus, &[])
}

fn guarded_autopsy(
    ending: Ending,
    source: Source,
    memory: &GuestMemory,
    cpus: Vec<Cpu>,
    guarded: &[Guarded],
) -> Autopsy {
    Autopsy::perform(&Subject {
        ending,
        backend: Backend::KvmPvm,
        memory,
        symbols: &Symbols::new(),
        source,
        notes: Vec::new(),
        cpus,
        never_started: vec![1, 2, 3, 5],
        guarded,
    })
}

fn summary(memory: &GuestMemory, state: &CpuState) -> String {
    page(memory, state).summary
}

#[test]
fn memory_that_strict_mode_guards_is_marked() {
    let (memory, mut state) = long_mode(&[0x0F, 0x0B]); // ud2
    gate(&memory, 6, 8, CODE, 0x8E);
    state.regs.rsp = 0xA800;
    let cpus = || vec![cpu(0, Registers::Whole(state.clone()))];
    let guard = |start, guard| Guarded { range: Range { start, end: start + 0x1000 }, guard };
    let of = |guarded: &[Guarded]| {
        let autopsy = guarded_autopsy(Ending::TripleFault, Source::End, &memory, cpus(), guarded);
        (autopsy.notes.join("\n"), autopsy.to_string())
    };
    let (notes, page) = of(&[guard(0xA000, Guard::ReadOnly)]);
    assert!(notes.contains("stack for vector 6 at 0xa7f8: read-only by --strict=text"), "{notes}");
    assert!(page.contains(", read-only by --strict=text"), "{page}");
    let (notes, page) = of(&[guard(CODE, Guard::ReadOnly)]);
    assert!(notes.is_empty() && page.contains("read-only by --strict=text"), "{notes}{page}");
    let (notes, _) = of(&[guard(IDT, Guard::Hole)]);
    assert!(notes.contains("no memory there by --strict=null"), "{notes}");
    let (notes, _) = of(&[guard(PT, Guard::ReadOnly)]);
    assert!(notes.contains("a table on the way"), "{notes}");
    assert!(of(&[]).0.is_empty());
}

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
fn what_was_never_loaded_or_has_no_memory_is_said() {
    let (memory, mut state) = long_mode(&[0x0F, 0x0B]);
    (state.idt.base, state.idt.limit) = (0, 0x3FF);
    let text = summary(&memory, &state);
    assert!(
        text.ends_with("the IDT is still that of real mode (base 0, limit 0x3ff): none was loaded"),
        "{text}"
    );
    let (memory, mut state) = long_mode(&[0x0F, 0x0B]);
    gate(&memory, 6, 8, 0x4000, 0x8E);
    put(&memory, PD + 8, 0x4000_0083_u64);
    state.regs.rsp = 0x30_0000;
    let text = summary(&memory, &state);
    assert!(
        text.ends_with("but its stack 0x300000 lies where no memory is; triple fault"),
        "{text}"
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
    let space = AddressSpace::new(&memory, &state);
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
    assert_eq!(vector(&[0x0F, 0xAA]), Some(6)); // rsm
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
fn an_access_faults_where_cr2_says() {
    let hole = |code: &[u8], rax: u64, rcx: u64| {
        let change = |memory: &GuestMemory, cpu: &mut CpuState| {
            put(memory, PT + 5 * 8, 0_u64);
            (cpu.regs.rax, cpu.regs.rcx) = (rax, rcx);
        };
        fault(code, change).map(|(.., words)| words)
    };
    let at_start = Some("page fault at 0x5000 (read, not present)".to_owned());
    // mov rax, [rax], of which the last bytes lie in the next page
    assert_eq!(hole(&[0x48, 0x8B, 0x00], 0x4FFC, 0), at_start);
    // bt [rax], rcx and bt [rax], ecx: the bit may lie far away, on both sides
    assert_eq!(hole(&[0x48, 0x0F, 0xA3, 0x08], 0x4000, 0x8000), at_start);
    assert_eq!(hole(&[0x0F, 0xA3, 0x08], 0x6000, -0x8000_i64 as u64), at_start);
    assert_eq!(hole(&[0x0F, 0xA3, 0x08], 0x4000, 31), None);
    assert_eq!(hole(&[0x48, 0x0F, 0xBA, 0x20, 63], 0x4000, 0), None); // bt qword [rax], 63
}

#[test]
fn an_instruction_of_more_than_15_bytes() {
    let long = |code: &[u8]| fault(code, |_, _| ()).map(|(vector, code, _)| (vector, code));
    let prefixed = |n, rest: &[u8]| [&[0x66].repeat(n), rest].concat();
    assert_eq!(long(&prefixed(14, &[0x90])), None);
    assert_eq!(long(&prefixed(15, &[0x90])), Some((PROTECTION, 0)));
    assert_eq!(long(&prefixed(20, &[0x90])), Some((PROTECTION, 0)));
    assert_eq!(long(&prefixed(12, &[0xB8, 0x34, 0x12])), None); // mov ax, 0x1234
    assert_eq!(long(&prefixed(13, &[0xB8, 0x34, 0x12])), Some((PROTECTION, 0)));
    assert_eq!(long(&prefixed(12, &[0x06])), Some((6, 0))); // push es, none in 64-bit mode
}

#[test]
fn instructions_that_registers_forbid() {
    /// Its bytes, RAX, the vector, a part of the words.
    type Row = (&'static [u8], u64, u8, &'static str);
    const ROWS: &[Row] = &[
        (&[0x0F, 0x05], 0, 6, "syscall, and EFER.SCE is clear"),
        (&[0x48, 0x0F, 0x07], 0, 6, "EFER.SCE is clear"), // sysretq
        (&[0x0F, 0x01, 0xD1], 1, 6, "xsetbv, and CR4.OSXSAVE is clear"),
        (&[0x0F, 0x22, 0xC0], 0x11, 13, "mov cr0, rax with 0x11: 64-bit code cannot clear PG"),
        (&[0x44, 0x0F, 0x22, 0xC0], 0x10, 13, "mov cr8, rax with 0x10: bits above 3"),
        (&[0x0F, 0x23, 0xF8], 1 << 32, 13, "mov dr7, rax with 0x100000000: bits above 31"),
        (&[0x0F, 0x23, 0xF0], 1 << 32, 13, "mov dr6, rax with 0x100000000: bits above 31"),
        // lidt [rax], lgdt [rax]
        (&[0x0F, 0x01, 0x18], 0xA000, 13, "with base 0x900000000000, which is not canonical"),
        (&[0x0F, 0x01, 0x10], 0xA000, 13, "with base 0x900000000000, which is not canonical"),
    ];
    for &(code, rax, vector, part) in ROWS {
        let (raised, error_code, words) = fault(code, |memory, cpu| {
            put(memory, 0xA002, 0x9000_0000_0000_u64);
            cpu.regs.rax = rax;
        })
        .unwrap();
        assert_eq!((raised, error_code), (vector, 0), "{words}");
        assert!(words.contains(part), "{words}");
    }
    let quiet = |code: &[u8], rax| fault(code, |_, cpu| cpu.regs.rax = rax);
    assert_eq!(quiet(&[0x44, 0x0F, 0x22, 0xC0], 0xF), None); // mov cr8, rax
    assert_eq!(quiet(&[0x0F, 0x23, 0xC0], 1 << 32), None); // mov dr0, rax
    assert_eq!(quiet(&[0x0F, 0x01, 0x18], 0xB000), None); // lidt [rax]
}

#[test]
fn xsetbv_refuses_what_no_processor_has() {
    let words = |rcx, rax| {
        let found = fault(&[0x0F, 0x01, 0xD1], |_, cpu| {
            cpu.cr4 |= Cr4::OSXSAVE;
            (cpu.regs.rcx, cpu.regs.rax) = (rcx, rax);
        });
        found.map(|(vector, _, words)| {
            assert_eq!(vector, PROTECTION, "{words}");
            words
        })
    };
    assert!(words(0, 0).unwrap().contains("xsetbv with 0x0: bit 0 of XCR0 cannot be clear"));
    assert!(words(0, 5).unwrap().contains("AVX without SSE"));
    assert!(words(1, 1).unwrap().contains("there is no XCR1"));
    assert_eq!(words(0, 7), None);
}

#[test]
fn a_division_by_an_immediate_of_zero() {
    let (memory, mut state) = long_mode(&[0xD4, 0x00]); // aam 0
    state.efer = Efer::empty();
    state.cr0 = Cr0::PE;
    state.cs = Segment { long: false, default_32: true, ..state.cs };
    let text = summary(&memory, &state);
    assert!(text.starts_with("divide error (aam 0) at 0x8000;"), "{text}");
    put(&memory, CODE, [0xD4_u8, 0x0A]); // aam
    assert!(summary(&memory, &state).contains("nothing in the state tells"));
}

#[test]
fn ring_3_has_alignment_checked_where_it_asks() {
    let check = |cr0, rflags, dpl, address| {
        fault(&[0x8B, 0x00], |memory, cpu| {
            for table in [PML4, PDPT, PD] {
                let entry: u64 = memory.read_obj(GuestAddress(table)).unwrap();
                put(memory, table, entry | 4);
            }
            for page in [8_u64, 9] {
                put(memory, PT + page * 8, page << 12 | 7);
            }
            (cpu.ss.dpl, cpu.regs.rax) = (dpl, address);
            cpu.cr0 |= cr0;
            cpu.rflags |= rflags;
        })
    };
    let (vector, code, words) = check(Cr0::AM, Rflags::AC, 3, 0x9001).unwrap(); // mov eax, [rax]
    assert_eq!((vector, code), (17, 0));
    assert!(words.contains("mov eax, [rax] at 0x9001, which is not aligned to 4"), "{words}");
    assert_eq!(check(Cr0::AM, Rflags::AC, 3, 0x9004), None);
    assert_eq!(check(Cr0::AM, Rflags::AC, 0, 0x9001), None);
    assert_eq!(check(Cr0::AM, Rflags::empty(), 3, 0x9001), None);
    assert_eq!(check(Cr0::empty(), Rflags::AC, 3, 0x9001), None);
    assert_eq!(check(Cr0::AM, Rflags::AC, 3, 0xA001).unwrap().0, PAGE, "a page fault comes first");
}

#[test]
fn debug_exceptions_of_the_guests_own() {
    let (memory, mut state) = long_mode(&[0x90]);
    state.idt.limit = 0;
    let with = |state: &CpuState, debug_registers| {
        let cpus = vec![Cpu { debug_registers, ..cpu(0, Registers::Whole(state.clone())) }];
        autopsy(Ending::TripleFault, Source::End, &memory, cpus).summary
    };
    let breakpoint = DebugRegisters { addresses: [CODE, 0, 0, 0], dr6: 0, dr7: 1 };
    assert_eq!(
        with(&state, breakpoint),
        "debug exception (DR0 has a breakpoint here) at 0x8000; its handler could not be entered: \
         the IDT's limit is 0; then general protection fault: the same; double fault: the same; \
         triple fault"
    );
    state.rflags |= Rflags::TF;
    let text = with(&state, DebugRegisters::default());
    assert!(text.starts_with("debug exception (a single step: RFLAGS.TF is set) at"), "{text}");
    // What the instruction itself raises, unless DR6 tells of the step.
    put(&memory, CODE, 0x0B0F_u16);
    let text = with(&state, DebugRegisters::default());
    assert!(text.starts_with("invalid opcode (ud2) at"), "{text}");
    let text = with(&state, DebugRegisters { dr6: 1 << 14, ..DebugRegisters::default() });
    assert!(text.starts_with("debug exception (a single step"), "{text}");
}

#[test]
fn a_guest_that_had_not_started_is_said_to() {
    let (memory, state) = long_mode(&[0x90]);
    let cpus = vec![Cpu { died: false, ..cpu(0, Registers::Whole(state)) }];
    let ending = Ending::TimedOut("1ms".to_owned());
    let page = autopsy(ending, Source::BeforeStart, &memory, cpus);
    let line = "not started within 1ms: the guest's first instruction is at 0x8000";
    assert_eq!(page.summary, line);
}

#[test]
fn the_caller_of_a_function_without_a_frame_is_on_the_stack() {
    // call 0x8010; at 0x8010: nop, dec ecx.
    let (memory, mut state) = long_mode(&[0xE8, 0x0B, 0, 0, 0]);
    memory.write_slice(&[0x90, 0xFF, 0xC9], GuestAddress(CODE + 16)).unwrap();
    put(&memory, 0x9000, CODE + 5);
    state.regs.rip = CODE + 17;
    let caller = |start| {
        let at = Standing::new(AddressSpace::new(&memory, &state), &state);
        let cursor = Cursor { rip: state.regs.rip, rsp: 0x9000, rbp: 0 };
        frameless(&at, start, &cursor).map(|next| (next.rip, next.rsp))
    };
    assert_eq!(caller(CODE + 16), Some((CODE + 5, 0x9008)));
    // Below what it has pushed, and a return address that is another's.
    put(&memory, 0x9000, CODE + 7);
    put(&memory, 0x9018, CODE + 5);
    assert_eq!(caller(CODE + 16), Some((CODE + 5, 0x9020)));
    assert_eq!(caller(CODE + 15), None, "it calls another");
    memory.write_obj(0x55_u8, GuestAddress(CODE + 16)).unwrap(); // push rbp: it has one
    assert_eq!(caller(CODE + 16), None);
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
    let space = AddressSpace::new(&memory, &state);
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
    let space = AddressSpace::new(&memory, &short);
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
    assert!(text.starts_with("divide error (div cx by zero) at 0800:0000;"), "{text}");
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
    assert_eq!(mappings(&AddressSpace::new(&memory, &state)), [low, again].concat());
}

#[test]
fn a_second_run_that_went_another_way_says_so_first() {
    let (memory, state) = long_mode(&[0x0F, 0x0B]);
    let from = |source| {
        let cpus = vec![cpu(0, Registers::Whole(state.clone()))];
        autopsy(Ending::TripleFault, source, &memory, cpus).summary
    };
    let same = from(Source::SecondRun);
    assert!(same.starts_with("invalid opcode (ud2) at 0x8000;"), "{same}");
    assert_eq!(from(Source::OtherWay), format!("in a second run, that went another way: {same}"));
}

#[test]
fn the_place_is_that_of_the_instruction_that_ended_it() {
    let (memory, mut state) = long_mode(&[0x90, 0xFA, 0xF4]); // nop; cli; hlt
    state.regs.rip = CODE + 3;
    let cpus = vec![Cpu { instruction: Some(CODE + 2), ..cpu(0, Registers::Whole(state)) }];
    let page = autopsy(Ending::Halted, Source::End, &memory, cpus);
    assert_eq!(page.summary, "halted for ever at 0x8002: hlt with interrupts off");
    assert_eq!(page.cpus[0].backtrace[0].rip, CODE + 2);
    let text = page.to_string();
    assert!(text.contains("-> 0x8002  f4") && text.contains("rip 0000000000008003"), "{text}");
    assert!(text.contains("RIP stands behind"), "{text}");
    assert!(text.ends_with("\nvCPU 1-3, 5: never started\n"), "{text}");
}

/// jmp $, interrupts on, no gate at all.
fn interrupted(change: impl Fn(&mut Cpu)) -> String {
    let (memory, mut state) = long_mode(&[0xEB, 0xFE]);
    state.rflags = Rflags::ONE | Rflags::IF;
    let mut cpu = cpu(0, Registers::Whole(state));
    change(&mut cpu);
    autopsy(Ending::TripleFault, Source::End, &memory, vec![cpu]).summary
}

#[test]
fn an_interrupt_is_the_one_that_a_controller_tells_of() {
    let told = interrupted(|cpu| {
        cpu.local_apic = Some(LocalApic {
            pending: vec![0x40, 0x50],
            in_service: vec![0x60],
            task_priority: 0,
            enabled: true,
        });
    });
    assert_eq!(
        told,
        "interrupt 0x60 (in service in the local APIC) at 0x8000; its handler could not be \
         entered: IDT entry 96 is empty; then general protection fault: IDT entry 13 is empty; \
         double fault: IDT entry 8 is empty; triple fault"
    );
    // The timer by a PIC that nobody has moved: no double fault, whatever its vector.
    let told = interrupted(|cpu| cpu.pic = vec![8]);
    assert!(told.starts_with("interrupt 0x8 (from the PIC) at 0x8000; its handler"), "{told}");
    assert!(told.contains("then general protection fault"), "{told}");
    assert_eq!(
        interrupted(|_| ()),
        "triple fault at 0x8000: nothing in the state tells why `jmp short 0x8000` would fault; \
         interrupts are on: one may have come, and found no handler"
    );
}

#[test]
fn tables_where_no_memory_is() {
    let (memory, mut state) = long_mode(&[0x0F, 0x0B]);
    put(&memory, PD + 8, 0x4000_0083_u64);
    state.idt.base = 0x20_0000;
    let text = summary(&memory, &state);
    assert!(text.contains("IDT entry 6, at 0x200060, lies where no memory is"), "{text}");
}

#[test]
fn compatibility_mode_is_told_from_protected() {
    let (memory, mut state) = long_mode(&[0x0F, 0x0B]);
    state.cs.long = false;
    let page = page(&memory, &state);
    assert_eq!(page.cpus[0].mode, Some(CodeMode::Compatibility));
    assert!(page.to_string().contains("vCPU 0, on which it died: compatibility mode, ring 0"));
}

#[test]
fn a_long_backtrace_is_folded_and_says_that_it_is_cut() {
    // call CODE: each frame returns behind it.
    let (memory, mut state) = long_mode(&[0xE8, 0xFB, 0xFF, 0xFF, 0xFF, 0x0F, 0x0B]);
    state.regs.rip = CODE + 5;
    state.regs.rbp = 0x9000;
    for frame in 0..64_u64 {
        put(&memory, 0x9000 + frame * 16, 0x9010 + frame * 16);
        put(&memory, 0x9008 + frame * 16, CODE + 5);
    }
    let page = page(&memory, &state);
    assert!(page.cpus[0].backtrace_cut);
    let text = page.to_string();
    assert!(text.contains("    #0 to #31 0x8005\n    ... and further callers\n"), "{text}");
}

#[test]
fn code_that_cannot_be_read_is_said_and_the_callers_shown() {
    let (memory, mut state) = long_mode(&[0xFF, 0xD0]); // call rax
    put(&memory, PT, 0_u64);
    state.regs.rip = 0;
    let text = page(&memory, &state).to_string();
    assert!(text.contains("code at RIP cannot be read: <- not present"), "{text}");
    put(&memory, 0x9000, CODE + 2);
    let text = page(&memory, &state).to_string();
    assert!(text.contains("code of the caller"), "{text}");
    assert!(text.contains("       0x8000  ff d0"), "{text}");
}

#[test]
fn an_address_is_said_once_and_by_its_segment_in_real_mode() {
    let (memory, mut state) = long_mode(&[0xF4]);
    state.regs.rip = 0xD000_0000;
    put(&memory, PML4, 0x3_0000_u64 | 3);
    put(&memory, 0x3_0000 + 3 * 8, 0xC000_0083_u64);
    let cpus = vec![cpu(0, Registers::Whole(state.clone()))];
    let page = autopsy(Ending::Unrunnable, Source::End, &memory, cpus);
    assert_eq!(page.summary, "instruction fetch at 0xd0000000, where no memory is");
    (state.cr0, state.cr4, state.efer) = (Cr0::empty(), Cr4::empty(), Efer::empty());
    state.cs = Segment::real_code(0x800);
    state.regs.rip = 0;
    let cpus = vec![cpu(0, Registers::Whole(state))];
    let page = autopsy(Ending::Halted, Source::End, &memory, cpus);
    assert_eq!(page.summary, "halted for ever at 0800:0000: hlt with interrupts off");
    assert!(page.to_string().contains("-> 0800:0000  f4"), "{page}");
}

#[test]
fn what_kvm_pvm_cannot_do_is_said() {
    let (memory, mut state) = long_mode(&[0x0F, 0x22, 0xC0]); // mov cr0, eax
    state.cr0 = Cr0::PE;
    state.efer = Efer::empty();
    state.cs = Segment { long: false, default_32: true, ..state.cs };
    state.regs.rax = 0x8000_0001;
    let text = summary(&memory, &state);
    assert!(text.ends_with("would fault; kvm_pvm has no paging outside long mode"), "{text}");
}

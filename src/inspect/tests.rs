//! Deaths made by hand: page tables, descriptor tables and code in guest memory, no KVM.

mod faults;
mod handlers;
mod rings;
mod walks;

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
        let cursor = Cursor { rip: state.regs.rip, rsp: 0x9000, rbp: 0, exact: true };
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

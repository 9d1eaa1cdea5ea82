//! The fault that one instruction raises.

use super::*;

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
fn an_invalid_opcode_is_one_where_no_more_can_be_read_too() {
    let at_end = |code: &[u8]| {
        fault(&[], |memory, cpu| {
            put(memory, PT + 6 * 8, 0_u64);
            cpu.regs.rip = 0x6000 - code.len() as u64;
            memory.write_slice(code, GuestAddress(cpu.regs.rip)).unwrap();
        })
        .map(|(vector, ..)| vector)
    };
    assert_eq!(at_end(&[0x06]), Some(6)); // push es, none in 64-bit mode
    assert_eq!(at_end(&[0x0F, 0x0A]), Some(6));
    assert_eq!(at_end(&[0x0F]), Some(PAGE));
    assert_eq!(at_end(&[0x0F, 0xBA]), Some(PAGE)); // bt and its relatives
    assert_eq!(at_end(&[0x0F, 0xC7]), Some(PAGE)); // cmpxchg8b, rdrand
    assert_eq!(at_end(&[0xC5]), Some(PAGE)); // VEX
    assert_eq!(at_end(&[0xB8, 1, 2]), Some(PAGE)); // mov eax, ...
    assert_eq!(at_end(&[0xEB, 0xFE]), None);
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

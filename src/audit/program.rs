//! The code around an instruction under test, as bytes: what leads to its mode and ring, what
//! sets its operands up, what measures its time. Called by `lab`; knows no KVM.

use super::context::{Context, Mode};
use super::ground;
use super::instruction::{Input, Instruction, Operand, Pops};
use crate::x86::Rflags;

/// How often a timed run executes its instruction.
pub const REPEATS: u32 = 32;
/// What programs that read TSC_AUX are to see; Linux has its processors' numbers there.
pub const TSC_AUX: u32 = 0x5A5;
/// What programs that read the base of FS are to see.
pub const FS_BASE: u32 = 0x005A_0000;

const IF: u16 = Rflags::IF.bits() as u16;
const IOPL_3: u16 = 3 << 12;
/// Bit 1 of the flags is always 1.
const FLAGS: u16 = Rflags::ONE.bits() as u16;

/// What is put into memory for a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// At [`ground::LAUNCH`].
    pub launch: Vec<u8>,
    /// Where the vCPU's stack points at launch.
    pub launch_stack: u64,
    /// What lies there.
    pub frame: Vec<u8>,
    /// At [`ground::PROBE`].
    pub code: Vec<u8>,
    /// Where the instruction under test lies.
    pub at: u64,
    /// What lies behind it.
    pub next: u64,
    /// Where the UD2 lies that ends a run.
    pub end: u64,
    /// At [`ground::STACK`], which the stack pointer points at.
    pub stack: Vec<u8>,
    /// At [`ground::SCRATCH`].
    pub operand: Vec<u8>,
}

impl Program {
    /// Is there code of this program at an address?
    pub fn has(&self, address: u64) -> bool {
        let end = ground::PROBE + self.code.len() as u64;
        (ground::LAUNCH..end).contains(&address)
    }
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Where.
    pub context: Context,
    /// The bytes of the instruction; none is the empty loop.
    pub bytes: &'a [u8],
    /// What it works on.
    pub on: Option<&'a Instruction>,
    /// EAX, ECX and EDX, where the row is to be overruled.
    pub inputs: [Input; 3],
    /// CR4.
    pub cr4: u64,
    /// MSRs to be written first, in ring 0.
    pub msrs: &'a [(u32, u64)],
    /// In a loop, with the time.
    pub timed: bool,
    /// By KVM_SET_SREGS, without an IRET and without the MSRs.
    pub there: bool,
}

impl<'a> Plan<'a> {
    /// A row of the table; `None` where the context does not have it.
    pub fn of(row: &'a Instruction, context: Context) -> Option<Self> {
        let bytes = row.bytes_in(context)?;
        let cr4 = context.cpu().cr4.bits() | row.cr4;
        let (inputs, msrs) = (row.inputs, row.msrs);
        Some(Self { bytes, on: Some(row), inputs, cr4, msrs, ..Self::empty(context) })
    }

    /// The empty loop: what a run costs without an instruction.
    pub fn empty(context: Context) -> Self {
        let cr4 = context.cpu().cr4.bits();
        Self {
            context,
            bytes: &[],
            on: None,
            inputs: [Input::None; 3],
            cr4,
            msrs: &[],
            timed: false,
            there: false,
        }
    }

    /// Puts it together.
    pub fn assemble(&self) -> Program {
        let mut program = Program::default();
        self.code(&mut program);
        if let Some(row) = self.on {
            program.stack = self.stack(row, program.next);
            program.operand = self.operand(row, program.next);
        }
        self.launch(&mut program);
        program
    }

    fn code(&self, program: &mut Program) {
        let width = self.context.width();
        let mut code = Assembler { code: vec![], width };
        if self.timed {
            code.load(5, REPEATS); // EBP
            code.bytes(&[0x0F, 0x31]); // rdtsc
            code.store_eax(ground::START_TIME);
        }
        let again = code.code.len();
        // Where the instruction lies is known only when what precedes it is: its length does
        // not depend on the values.
        let mut set_up = |next: u64| {
            code.code.truncate(again);
            for (register, input) in [(0, self.inputs[0]), (1, self.inputs[1]), (2, self.inputs[2])]
            {
                if let Some(value) = self.value(input, next) {
                    code.load(register, value);
                }
            }
            code.load(7, ground::SCRATCH as u32); // EDI
            ground::PROBE + code.code.len() as u64
        };
        program.next = set_up(0) + self.bytes.len() as u64;
        program.at = set_up(program.next);
        code.bytes(self.bytes);
        if self.timed {
            code.loop_to(again);
            code.bytes(&[0x0F, 0x31]); // rdtsc
        }
        program.end = ground::PROBE + code.code.len() as u64;
        code.bytes(&[0x0F, 0x0B]); // ud2
        program.code = code.code;
    }

    fn value(&self, input: Input, next: u64) -> Option<u32> {
        let cpu = self.context.cpu();
        match input {
            Input::None => None,
            Input::Value(value) => Some(value),
            Input::Cr0 => Some(cpu.cr0.bits() as u32),
            Input::Cr3 => Some(cpu.cr3 as u32),
            Input::Cr4 => Some(self.cr4 as u32),
            Input::Next => Some(next as u32),
        }
    }

    /// What the instruction pops, once a repetition.
    fn stack(&self, row: &Instruction, next: u64) -> Vec<u8> {
        let width = self.context.width();
        let code = u64::from(self.context.code());
        let mut words = Words { bytes: vec![], width };
        for _ in 0..if self.timed { REPEATS } else { 1 } {
            match row.pops {
                Pops::Nothing => {}
                Pops::Flags => words.push(u64::from(IF | IOPL_3 | FLAGS)),
                Pops::Selector(selector) => words.push(self.selector(selector)),
                Pops::FarReturn => {
                    words.width = width.min(4); // 64-bit code has 32-bit operands by default
                    words.push(next);
                    words.push(code);
                }
                Pops::InterruptReturn => {
                    words.push(next);
                    words.push(code);
                    words.push(u64::from(IF | FLAGS));
                    if self.context.mode == Mode::Long {
                        let behind = ground::STACK + words.bytes.len() as u64 + 16;
                        words.push(behind);
                        words.push(u64::from(self.context.stack()));
                    }
                }
            }
        }
        words.bytes
    }

    /// A paragraph where segments are paragraphs.
    fn selector(&self, selector: u16) -> u64 {
        if self.context.is_8086() { 0 } else { selector.into() }
    }

    fn operand(&self, row: &Instruction, next: u64) -> Vec<u8> {
        let mut words = Words { bytes: vec![], width: self.context.width().min(4) };
        match row.operand {
            Operand::Zero => words.bytes.resize(64, 0),
            Operand::FarPointer => {
                words.push(next);
                words.push(self.context.code().into());
            }
            Operand::CallGate => {
                words.push(0);
                words.push(u64::from(ground::CALL_GATE | 3));
            }
            Operand::Gdt => words.table(self.context.gdt()),
            Operand::Idt => words.table(self.context.idt()),
        }
        words.bytes
    }

    /// Ring 0's part: the MSRs, then the way to the code under test.
    fn launch(&self, program: &mut Program) {
        let context = self.context;
        let width = match context.mode {
            Mode::Real => 2,
            _ if context.is_long() => 8,
            _ => 4,
        };
        let mut code = Assembler { code: vec![], width };
        for (index, value) in self.msrs {
            code.load(1, *index);
            code.load(0, *value as u32);
            code.load(2, (value >> 32) as u32);
            code.bytes(&[0x0F, 0x30]); // wrmsr
        }
        if matches!(context.mode, Mode::Protected | Mode::Virtual8086) {
            // As a kernel does it. QEMU, whose TCG may be the processor, aborts where an exception
            // goes to ring 0 by a 32-bit task that it has not seen LTR load.
            code.load(0, context.task().into());
            code.bytes(&[0x0F, 0x00, 0xD8]); // ltr ax
        }
        program.launch_stack = ground::STACK;
        if context.is_entered_by_iret() {
            program.frame = self.frame(width);
            program.launch_stack = ground::STACK_0 - program.frame.len() as u64;
            code.bytes(if width == 8 { &[0x48, 0xCF] } else { &[0xCF] });
        } else {
            code.jump(ground::LAUNCH, ground::PROBE);
        }
        program.launch = code.code;
    }

    /// What IRET pops on its way out of ring 0 (Intel SDM Vol. 2A, IRET; Vol. 3B 21.2.5).
    fn frame(&self, width: usize) -> Vec<u8> {
        let context = self.context;
        let mut words = Words { bytes: vec![], width };
        let virtual_8086 = context.mode == Mode::Virtual8086;
        let vm = if virtual_8086 { Rflags::VM } else { Rflags::empty() };
        let flags = (context.cpu().rflags | vm).bits();
        let (code, stack) = (context.code().into(), context.stack().into());
        for word in [ground::PROBE, code, flags, ground::STACK, stack] {
            words.push(word);
        }
        if virtual_8086 {
            words.bytes.resize(words.bytes.len() + 4 * width, 0); // ES, DS, FS, GS
        }
        words.bytes
    }
}

/// What SYSCALL and SYSRET read (Intel SDM Vol. 4, table 2-2).
pub const SYSCALL_MSRS: &[(u32, u64)] = &[
    (0xC000_0081, STAR),
    (0xC000_0082, ground::LANDING), // LSTAR
    (0xC000_0083, ground::LANDING), // CSTAR
];
const STAR: u64 =
    (ground::SYSRET_BASE as u64 | 3) << 48 | (ground::CODE_64 as u64) << 32 | ground::LANDING;
/// What SYSENTER and SYSEXIT read: CS, ESP, EIP.
pub const SYSENTER_MSRS: &[(u32, u64)] =
    &[(0x174, ground::CODE_64 as u64), (0x175, ground::STACK_0), (0x176, ground::LANDING)];
/// What RDFSBASE reads.
pub const FS_BASE_MSR: &[(u32, u64)] = &[(0xC000_0100, FS_BASE as u64)];
/// What RDTSCP and RDPID read.
pub const TSC_AUX_MSR: &[(u32, u64)] = &[(0xC000_0103, TSC_AUX as u64)];

/// Words of a stack or of an operand.
struct Words {
    bytes: Vec<u8>,
    width: usize,
}

impl Words {
    fn push(&mut self, word: u64) {
        self.bytes.extend_from_slice(&word.to_le_bytes()[..self.width]);
    }

    fn table(&mut self, table: crate::x86::DescriptorTable) {
        self.bytes.extend_from_slice(&table.limit.to_le_bytes());
        self.bytes.extend_from_slice(&table.base.to_le_bytes());
    }
}

/// The few instructions that are needed, in code of `width` bytes a word.
struct Assembler {
    code: Vec<u8>,
    width: usize,
}

impl Assembler {
    fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// In 16-bit code 32-bit operands need a prefix.
    fn wide(&mut self) {
        if self.width == 2 {
            self.code.push(0x66);
        }
    }

    /// `mov r32, value`, which in 64-bit code clears the upper half.
    fn load(&mut self, register: u8, value: u32) {
        self.wide();
        self.code.push(0xB8 + register);
        self.bytes(&value.to_le_bytes());
    }

    /// `mov [address], eax`: the address is as wide as the code's.
    fn store_eax(&mut self, address: u64) {
        self.wide();
        self.code.push(0xA3);
        self.bytes(&address.to_le_bytes()[..self.width]);
    }

    /// `dec ebp; jnz`.
    fn loop_to(&mut self, offset: usize) {
        self.wide();
        self.bytes(&[0xFF, 0xCD, 0x75]);
        let back = offset as i64 - (self.code.len() as i64 + 1);
        self.code.push(back as i8 as u8);
    }

    /// `jmp` to an absolute address, from code that begins at `base`.
    fn jump(&mut self, base: u64, to: u64) {
        self.code.push(0xE9);
        let size = if self.width == 2 { 2 } else { 4 };
        let from = base + (self.code.len() + size) as u64;
        self.bytes(&to.wrapping_sub(from).to_le_bytes()[..size]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::CONTEXTS;
    use super::super::table::INSTRUCTIONS;
    use super::*;

    /// Every program fits, its loop reaches back, and the instruction lies where it says.
    #[test]
    fn programs_fit_where_they_go() {
        for context in CONTEXTS {
            for plan in INSTRUCTIONS.iter().filter_map(|row| Plan::of(row, *context)) {
                let timed = plan.on.is_some_and(|row| !row.once);
                let program = Plan { timed, ..plan }.assemble();
                let at = (program.at - ground::PROBE) as usize;
                assert_eq!(&program.code[at..at + plan.bytes.len()], plan.bytes);
                assert!(program.code.len() < 128, "the loop's jump is short");
                assert!(program.launch.len() < 0x400);
                assert!((program.stack.len() as u64) < ground::STACK_ABOVE);
                assert!(program.launch_stack <= ground::STACK_0);
            }
        }
    }

    #[test]
    fn a_timed_program_in_16_bit_code() {
        let plan = Plan { timed: true, bytes: &[0x90], ..Plan::empty(CONTEXTS[0]) };
        let program = plan.assemble();
        let expected = [
            0x66, 0xBD, 32, 0, 0, 0, // mov ebp, 32
            0x0F, 0x31, // rdtsc
            0x66, 0xA3, 0x00, 0x79, // mov [0x7900], eax
            0x66, 0xBF, 0x00, 0x78, 0, 0, // mov edi, 0x7800
            0x90, 0x66, 0xFF, 0xCD, 0x75, 0xF4, // nop; dec ebp; jnz
            0x0F, 0x31, 0x0F, 0x0B,
        ];
        assert_eq!(program.code, expected);
        assert_eq!(program.launch, [0xE9, 0xFD, 0x0F]);
    }
}

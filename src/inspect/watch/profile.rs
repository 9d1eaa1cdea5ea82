//! `--profile`: where the guest's time goes, by samples of RIP and the frame pointers behind
//! it, as folded lines (`vcpu0;outer;inner 42`) that flame graph programs read.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use crate::inspect::{AddressSpace, Functions};
use crate::mem::GuestMemory;
use crate::x86::{CpuState, Mode};

/// Time between samples. Not a whole number of milliseconds: a guest whose timer ticks every
/// millisecond would else be seen at the same point of each tick.
pub const PERIOD: Duration = Duration::from_micros(997);

/// Calls that a stack is followed through.
const DEEPEST: usize = 64;
/// Stacks that are told apart.
const MOST: usize = 16 << 10;

/// A stack: the function that ran first, then its callers.
type Stack = Vec<u64>;

/// Samples of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Samples {
    stacks: HashMap<Stack, u64>,
    others: u64,
    idle: u64,
}

impl Samples {
    pub(super) fn take(&mut self, functions: &Functions, memory: &GuestMemory, cpu: &CpuState) {
        let stack = stack(functions, memory, cpu);
        self.add(stack, 1);
    }

    /// It was halted, or had not been started.
    pub(super) fn take_idle(&mut self) {
        self.idle += 1;
    }

    fn add(&mut self, stack: Stack, count: u64) {
        let is_room = self.stacks.len() < MOST;
        match self.stacks.get_mut(&stack) {
            Some(sum) => *sum += count,
            None if is_room => drop(self.stacks.insert(stack, count)),
            None => self.others += count,
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        other.stacks.into_iter().for_each(|(stack, count)| self.add(stack, count));
        self.others += other.others;
        self.idle += other.idle;
    }

    /// Appends the folded lines.
    pub(super) fn fold(&self, functions: &Functions, vcpu: u32, folded: &mut String) {
        // A semicolon parts the frames, and Rust's `[u8; 4]` has one too.
        let name = |address: &u64| functions.describe(*address).replace(';', ":");
        let line = |(stack, count): (&Stack, &u64)| {
            let frames: Vec<_> = stack.iter().rev().map(name).collect();
            (frames.join(";"), *count)
        };
        let mut lines: Vec<_> = self.stacks.iter().map(line).collect();
        let named = [("[others]", self.others), ("[idle]", self.idle)];
        let named = named.into_iter().filter(|(_, count)| *count > 0);
        lines.extend(named.map(|(name, count)| (name.to_owned(), count)));
        lines.sort();
        for (frames, count) in lines {
            let _ = writeln!(folded, "vcpu{vcpu};{frames} {count}"); // a String takes all
        }
    }
}

/// The functions on the stack, each by where it starts.
fn stack(functions: &Functions, memory: &GuestMemory, cpu: &CpuState) -> Stack {
    let mut stack = vec![functions.start_of(cpu.linear_rip())];
    let (word, base) = match cpu.mode() {
        Mode::Long => (8, 0),
        Mode::Protected if cpu.ss.default_32 => (4, cpu.ss.base),
        // 16-bit code has no convention that a stack could be followed by.
        _ => return stack,
    };
    let mut frame = cpu.regs.rbp;
    if let Some(caller) = caller_without_frame(functions, memory, cpu, word) {
        stack.push(functions.start_of(caller.wrapping_sub(1)));
    }
    while stack.len() < DEEPEST {
        let at = base.wrapping_add(frame);
        let caller = read(memory, cpu, at.wrapping_add(word), word);
        let (Some(caller), Some(next)) = (caller, read(memory, cpu, at, word)) else { break };
        // Code without frame pointers keeps anything in the register.
        if !is_memory(memory, cpu, caller.wrapping_sub(1)) {
            break;
        }
        // The instruction before is the call: after one that never returns another function
        // may begin.
        stack.push(functions.start_of(caller.wrapping_sub(1)));
        if next <= frame {
            break; // stacks grow down: a caller's frame is above
        }
        frame = next;
    }
    stack
}

/// The caller of a function that has made no frame, yet or at all (compilers leave it out where
/// a function calls no other): the return address is on top of the stack. One that has pushed
/// something else shows by what is there being in no function.
fn caller_without_frame(
    functions: &Functions,
    memory: &GuestMemory,
    cpu: &CpuState,
    word: u64,
) -> Option<u64> {
    /// PUSH RBP, with which a frame begins.
    const PUSH_RBP: u64 = 0x55;
    let rip = cpu.linear_rip();
    let start = functions.start_of(rip);
    if start != rip && AddressSpace::new(memory, cpu).peek_number(start, 1)? == PUSH_RBP {
        return None;
    }
    let caller = read(memory, cpu, cpu.linear_rsp(), word)?;
    functions.name_of(caller.wrapping_sub(1)).map(|_| caller)
}

/// Is there memory behind a linear address?
fn is_memory(memory: &GuestMemory, cpu: &CpuState, linear: u64) -> bool {
    AddressSpace::new(memory, cpu).peek_number(linear, 1).is_some()
}

/// A word of the guest's stack.
fn read(memory: &GuestMemory, cpu: &CpuState, linear: u64, word: u64) -> Option<u64> {
    // Compilers keep stacks aligned, so a word never crosses a page.
    if !linear.is_multiple_of(word) {
        return None;
    }
    AddressSpace::new(memory, cpu).peek_number(linear, word as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::watch::testing::cpu;
    use crate::mem::{self, Bytes, GuestAddress};
    use crate::x86::paging::PageTables;
    use crate::x86::{CpuInit, Cr0, Cr4, Efer};

    const CODE: &[(u64, u64, &str)] =
        &[(0x1000, 0x1010, "_start"), (0x2000, 0x2100, "outer"), (0x3000, 0x3100, "inner")];

    fn folded(memory: &GuestMemory, cpu: &CpuState) -> String {
        let functions = Functions::named(CODE);
        let mut samples = Samples::default();
        samples.take(&functions, memory, cpu);
        samples.take(&functions, memory, cpu);
        let mut text = String::new();
        samples.fold(&functions, 3, &mut text);
        text
    }

    #[test]
    fn frames_are_followed_through_page_tables() {
        let memory = mem::create(2 << 20).unwrap();
        let mut tables = PageTables::new(&memory, GuestAddress(0x8_0000), 8);
        tables.map(0x7FFF_0000, 0x1_0000, 4096).unwrap();
        tables.map(0x1000, 0x1000, 0x3000).unwrap();
        let words: [(u64, u64); 4] =
            [(0x100, 0x7FFF_0200), (0x108, 0x2050), (0x200, 0), (0x208, 0x1010)];
        for (at, value) in words {
            memory.write_obj(value, GuestAddress(0x1_0000 + at)).unwrap();
        }
        let init = CpuInit::long(0, tables.root(), 8, 16);
        assert_eq!((init.cr0 & Cr0::PG, init.cr4 & Cr4::PAE), (Cr0::PG, Cr4::PAE));
        assert!(init.efer.contains(Efer::LMA));
        let state = cpu(init, 0x3004, 0x7FFF_0100);
        // The return address 0x1010 lies behind _start, whose last instruction is the call.
        assert_eq!(folded(&memory, &state), "vcpu3;_start;outer;inner 2\n");
    }

    #[test]
    fn a_function_without_a_frame_has_its_caller_on_top_of_the_stack() {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_obj([0_u32, 0x1010], GuestAddress(0x5000)).unwrap();
        memory.write_obj(0x2050_u32, GuestAddress(0x4FF0)).unwrap();
        let mut state = cpu(CpuInit::protected(0, 8, 16), 0x3004, 0x5000);
        state.regs.rsp = 0x4FF0;
        assert_eq!(folded(&memory, &state), "vcpu3;_start;outer;inner 2\n");
        memory.write_obj(0x55_u8, GuestAddress(0x3000)).unwrap();
        assert_eq!(folded(&memory, &state), "vcpu3;_start;inner 2\n");
    }

    #[test]
    fn protected_mode_has_short_words() {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_obj([0_u32, 0x2050], GuestAddress(0x5000)).unwrap();
        let state = cpu(CpuInit::protected(0, 8, 16), 0x3004, 0x5000);
        assert_eq!(folded(&memory, &state), "vcpu3;outer;inner 2\n");
    }

    #[test]
    fn no_code_no_caller() {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_obj([0x6000_u32, 0xD000_0000], GuestAddress(0x5000)).unwrap();
        let state = cpu(CpuInit::protected(0, 8, 16), 0x3004, 0x5000);
        assert_eq!(folded(&memory, &state), "vcpu3;inner 2\n");
    }

    #[test]
    fn a_lying_frame_pointer_ends_the_walk() {
        let memory = mem::create(2 << 20).unwrap();
        memory.write_obj([0x5000_u32, 0x2050], GuestAddress(0x5000)).unwrap();
        for (rbp, expected) in [
            (0x5000, "vcpu3;outer;inner 2\n"),
            (0x5001, "vcpu3;inner 2\n"),
            (0xFFFF_FFFC, "vcpu3;inner 2\n"),
            (0xD000_0000, "vcpu3;inner 2\n"),
        ] {
            let state = cpu(CpuInit::protected(0, 8, 16), 0x3004, rbp);
            assert_eq!(folded(&memory, &state), expected, "{rbp:#x}");
        }
        let state = cpu(CpuInit::real(0x100, 0x7C00), 0x2004, 0x5000);
        assert_eq!(folded(&memory, &state), "vcpu3;inner 2\n");
    }
}

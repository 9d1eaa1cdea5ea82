//! The guest's instructions, in the mode that they run in.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use serde::Serialize;

use super::symbols::Symbols;
use super::walk::AddressSpace;
use crate::x86::{CpuState, Mode};

/// The longest instruction (Intel SDM Vol. 2A 2.3.11).
pub(super) const LONGEST: usize = 15;

/// An instruction for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The value of the instruction pointer at it.
    pub rip: u64,
    /// Its bytes in hexadecimal.
    pub bytes: String,
    /// In Intel's notation.
    pub text: String,
    /// Is it the one at RIP, or that the vCPU ended by?
    pub here: bool,
}

/// Code, as a vCPU in some state sees it.
pub(super) struct Code<'m> {
    space: AddressSpace<'m>,
    bits: u32,
    /// What is added to an instruction pointer for a linear address.
    base: u64,
}

impl<'m> Code<'m> {
    pub(super) fn new(space: AddressSpace<'m>, cpu: &CpuState) -> Self {
        let base = if cpu.mode() == Mode::Long { 0 } else { cpu.cs.base };
        Self { space, bits: cpu.code_bits(), base }
    }

    pub(super) fn linear(&self, rip: u64) -> u64 {
        let linear = rip.wrapping_add(self.base);
        if self.bits == 64 { linear } else { linear & 0xFFFF_FFFF }
    }

    fn bytes(&self, rip: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.space.peek(self.linear(rip), &mut bytes);
        bytes.truncate(read);
        bytes
    }

    /// The instruction at `rip`; an invalid one where there is none. `None` where its bytes
    /// cannot be read.
    pub(super) fn at(&self, rip: u64) -> Option<Instruction> {
        let bytes = self.bytes(rip, LONGEST);
        (!bytes.is_empty())
            .then(|| Decoder::with_ip(self.bits, &bytes, rip, DecoderOptions::NONE).decode())
    }

    /// Does the instruction at `rip` go on where nothing can be read? Then it would be one with some
    /// bytes behind those that can.
    pub(super) fn is_cut_off(&self, rip: u64) -> bool {
        let bytes = self.bytes(rip, LONGEST);
        let with = |next: u8| {
            let mut whole = bytes.clone();
            whole.resize(LONGEST, next);
            Decoder::with_ip(self.bits, &whole, rip, DecoderOptions::NONE).decode()
        };
        let goes_on = |it: Instruction| !it.is_invalid() && it.len() > bytes.len();
        bytes.len() < LONGEST && (0..=0xFF).any(|next| goes_on(with(next)))
    }

    /// Is the instruction at `rip` longer than any may be? Only prefixes that are there twice make
    /// it that: without them it is one.
    pub(super) fn is_too_long(&self, rip: u64) -> bool {
        let bytes = self.bytes(rip, 2 * LONGEST);
        let (prefixes, rest) =
            bytes.split_at(bytes.iter().take_while(|it| is_prefix(**it)).count());
        let mut once = prefixes.to_vec();
        once.sort_unstable();
        once.dedup();
        let again = prefixes.len() - once.len();
        let shorter = [&once, rest].concat();
        let it = Decoder::with_ip(self.bits, &shorter, rip, DecoderOptions::NONE).decode();
        prefixes.len() >= LONGEST || !it.is_invalid() && it.len() + again > LONGEST
    }

    /// The bytes at `rip` in hexadecimal, `len` of them.
    pub(super) fn hex(&self, rip: u64, len: usize) -> String {
        let digits: Vec<_> =
            self.bytes(rip, len).iter().map(|byte| format!("{byte:02x}")).collect();
        digits.join(" ")
    }

    /// Does the instruction that ends at `rip` look like a call? Then `rip` looks like a
    /// return address.
    pub(super) fn follows_call(&self, rip: u64) -> bool {
        // CALL has 2 to 7 bytes in the forms that compilers use.
        (2..=7).any(|len| {
            let start = rip.wrapping_sub(len);
            self.at(start).is_some_and(|it| {
                (it.is_call_near() || it.is_call_near_indirect() || it.is_call_far())
                    && it.len() as u64 == len
            })
        })
    }

    /// Where the direct call goes that ends at `rip`, if one does.
    pub(super) fn call_target(&self, rip: u64) -> Option<u64> {
        let call = |len: u64| self.at(rip.wrapping_sub(len)).filter(|it| it.len() as u64 == len);
        // E8 with a displacement of 32 bits, or of 16.
        let mut calls = [5, 3].into_iter().filter_map(call).filter(|it| it.is_call_near());
        calls.next().map(|it| it.near_branch_target())
    }

    /// `before` instructions before `rip`, the one there, and `after` after it.
    pub(super) fn around(
        &self,
        rip: u64,
        before: usize,
        after: usize,
        symbols: &Symbols<'_>,
    ) -> Vec<Line> {
        let mut starts = self.before(rip, symbols.function_start(self.linear(rip)));
        let first = starts.len().saturating_sub(before);
        let mut lines: Vec<_> = starts.drain(first..).map(|at| self.line(at, false)).collect();
        let mut at = rip;
        for n in 0..=after {
            let line = self.line(at, n == 0);
            let len = (line.bytes.len() + 1) / 3;
            if len == 0 {
                break;
            }
            lines.push(line);
            at = at.wrapping_add(len as u64);
        }
        lines
    }

    fn line(&self, rip: u64, here: bool) -> Line {
        let (len, text) = match self.at(rip) {
            Some(it) if !it.is_invalid() => (it.len(), text(&it)),
            Some(_) => (1, "(bad)".to_owned()),
            None => (0, "(unreadable)".to_owned()),
        };
        Line { rip, bytes: self.hex(rip, len), text, here }
    }

    /// Where the instructions before `rip` start. x86 code cannot be read backwards: the
    /// function's start is certain, else the farthest start from which decoding meets `rip`.
    fn before(&self, rip: u64, function: Option<u64>) -> Vec<u64> {
        const FAR: u64 = 8 * LONGEST as u64;
        let function = function.map(|linear| linear.wrapping_sub(self.base));
        if let Some(start) = function.filter(|start| rip.wrapping_sub(*start) <= 16 * FAR) {
            return self.chain(start, rip).unwrap_or_default();
        }
        let farthest = FAR.min(rip);
        let mut chains = (1..=farthest).rev().filter_map(|back| self.chain(rip - back, rip));
        chains.next().unwrap_or_default()
    }

    /// The instructions' starts from `start` on, where one of them ends at `rip`.
    fn chain(&self, start: u64, rip: u64) -> Option<Vec<u64>> {
        let bytes = self.bytes(start, rip.wrapping_sub(start) as usize);
        let mut decoder = Decoder::with_ip(self.bits, &bytes, start, DecoderOptions::NONE);
        let mut starts = Vec::new();
        while decoder.can_decode() {
            let it = decoder.decode();
            if it.is_invalid() {
                return None;
            }
            starts.push(it.ip());
        }
        (bytes.len() as u64 == rip.wrapping_sub(start)).then_some(starts)
    }
}

/// LOCK, REPNE and REP, the segments, and the sizes of operands and addresses (Intel SDM Vol. 2A
/// 2.1.1).
fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0xF0 | 0xF2 | 0xF3 | 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67)
}

/// An instruction in Intel's notation.
pub(super) fn text(it: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_small_hex_numbers_in_decimal(true);
    let mut text = String::new();
    formatter.format(it, &mut text);
    text
}

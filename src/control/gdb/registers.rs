//! The register file that gdb sees: one, of 64 bits, from real mode to long mode. A file that
//! changed with the mode would end the session ("Remote 'g' packet reply is too long").
//!
//! With the symbols of a 32-bit ELF file gdb takes the guest for an i386, and no description of
//! another processor. It gets one that either processor's gdb takes: the same registers, and
//! behind them the low halves of some under the names that an i386 has.
//!
//! RIP is shown as a linear address: outside 64-bit mode the base of CS is added, so that
//! breakpoints, disassembly and symbols work in 16-bit code, whose segments gdb does not
//! know. All other registers are the processor's own.

use std::fmt::Write as _;
use std::sync::OnceLock;

use crate::machine::debug::{CpuState, Cr0, Cr4, Efer, Fpu, Mode, Registers, Rflags, Segment};

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    General(usize),
    Rip,
    /// The low half of a general register.
    Low(usize),
    Eip,
    Rflags,
    /// CS, SS, DS, ES, FS, GS.
    Selector(usize),
    /// ST0 to ST7.
    X87(usize),
    /// The eight control registers of the x87, as FSTENV stores them.
    X87Control(usize),
    Xmm(usize),
    Mxcsr,
    FsBase,
    GsBase,
    KernelGsBase,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Cr8,
    Efer,
}

/// A register as the target description has it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    name: String,
    bits: usize,
    kind: &'static str,
    pub(super) register: Register,
}

impl Row {
    pub(super) fn bytes(&self) -> usize {
        self.bits / 8
    }
}

/// A feature of the target description: gdb takes registers of the names it knows from the
/// features it knows (GDB manual, "i386 Features"), and any others as they come.
struct Feature {
    name: &'static str,
    types: &'static str,
    rows: Vec<Row>,
}

const GENERAL: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// The names of the low halves, where there are any.
const LOW: [&str; 8] = ["eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp"];
const LOW_HALF: u64 = 0xFFFF_FFFF;
const SELECTORS: [&str; 6] = ["cs", "ss", "ds", "es", "fs", "gs"];
const X87_CONTROL: [&str; 8] =
    ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"];

const FLAG_TYPES: &str = "\
<flags id=\"i386_eflags\" size=\"4\">\
<field name=\"CF\" start=\"0\" end=\"0\"/><field name=\"\" start=\"1\" end=\"1\"/>\
<field name=\"PF\" start=\"2\" end=\"2\"/><field name=\"AF\" start=\"4\" end=\"4\"/>\
<field name=\"ZF\" start=\"6\" end=\"6\"/><field name=\"SF\" start=\"7\" end=\"7\"/>\
<field name=\"TF\" start=\"8\" end=\"8\"/><field name=\"IF\" start=\"9\" end=\"9\"/>\
<field name=\"DF\" start=\"10\" end=\"10\"/><field name=\"OF\" start=\"11\" end=\"11\"/>\
<field name=\"NT\" start=\"14\" end=\"14\"/><field name=\"RF\" start=\"16\" end=\"16\"/>\
<field name=\"VM\" start=\"17\" end=\"17\"/><field name=\"AC\" start=\"18\" end=\"18\"/>\
<field name=\"VIF\" start=\"19\" end=\"19\"/><field name=\"VIP\" start=\"20\" end=\"20\"/>\
<field name=\"ID\" start=\"21\" end=\"21\"/></flags>";

const VECTOR_TYPES: &str = "\
<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>\
<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>\
<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>\
<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>\
<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>\
<field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>\
<field name=\"uint128\" type=\"uint128\"/></union>";

const SYSTEM_TYPES: &str = "\
<flags id=\"cr0_flags\" size=\"8\">\
<field name=\"PE\" start=\"0\" end=\"0\"/><field name=\"MP\" start=\"1\" end=\"1\"/>\
<field name=\"EM\" start=\"2\" end=\"2\"/><field name=\"TS\" start=\"3\" end=\"3\"/>\
<field name=\"ET\" start=\"4\" end=\"4\"/><field name=\"NE\" start=\"5\" end=\"5\"/>\
<field name=\"WP\" start=\"16\" end=\"16\"/><field name=\"AM\" start=\"18\" end=\"18\"/>\
<field name=\"NW\" start=\"29\" end=\"29\"/><field name=\"CD\" start=\"30\" end=\"30\"/>\
<field name=\"PG\" start=\"31\" end=\"31\"/></flags>\
<flags id=\"efer_flags\" size=\"8\">\
<field name=\"SCE\" start=\"0\" end=\"0\"/><field name=\"LME\" start=\"8\" end=\"8\"/>\
<field name=\"LMA\" start=\"10\" end=\"10\"/><field name=\"NXE\" start=\"11\" end=\"11\"/></flags>";

fn row(name: impl Into<String>, bits: usize, kind: &'static str, register: Register) -> Row {
    Row { name: name.into(), bits, kind, register }
}

fn core() -> Vec<Row> {
    use Register::{General, Rflags, Rip, Selector, X87, X87Control};
    let kind = |name| if matches!(name, "rbp" | "rsp") { "data_ptr" } else { "int64" };
    let general = GENERAL.iter().enumerate();
    let mut rows: Vec<_> =
        general.map(|(n, name)| row(*name, 64, kind(*name), General(n))).collect();
    rows.push(row("rip", 64, "code_ptr", Rip));
    rows.push(row("eflags", 32, "i386_eflags", Rflags));
    let selectors = SELECTORS.iter().enumerate();
    rows.extend(selectors.map(|(n, name)| row(*name, 32, "int32", Selector(n))));
    rows.extend((0..8).map(|n| row(format!("st{n}"), 80, "i387_ext", X87(n))));
    let control = X87_CONTROL.iter().enumerate();
    rows.extend(control.map(|(n, name)| row(*name, 32, "int", X87Control(n))));
    rows
}

fn features() -> Vec<Feature> {
    use Register::{Cr0, Cr2, Cr3, Cr4, Cr8, Efer, FsBase, GsBase, KernelGsBase, Mxcsr, Xmm};
    let mut sse: Vec<_> = (0..16).map(|n| row(format!("xmm{n}"), 128, "vec128", Xmm(n))).collect();
    sse.push(row("mxcsr", 32, "int32", Mxcsr));
    let segments = vec![row("fs_base", 64, "int", FsBase), row("gs_base", 64, "int", GsBase)];
    let system = vec![
        row("k_gs_base", 64, "int64", KernelGsBase),
        row("cr0", 64, "cr0_flags", Cr0),
        row("cr2", 64, "data_ptr", Cr2),
        row("cr3", 64, "int64", Cr3),
        row("cr4", 64, "int64", Cr4),
        row("cr8", 64, "int64", Cr8),
        row("efer", 64, "efer_flags", Efer),
    ];
    let feature = |name, types, rows| Feature { name, types, rows };
    vec![
        feature("org.gnu.gdb.i386.core", FLAG_TYPES, core()),
        feature("org.gnu.gdb.i386.sse", VECTOR_TYPES, sse),
        feature("org.gnu.gdb.i386.segments", "", segments),
        feature("ringfence.system", SYSTEM_TYPES, system),
    ]
}

/// The low halves that an i386 has, behind all others.
fn low() -> Vec<Row> {
    let general = LOW.iter().enumerate();
    let mut rows: Vec<_> =
        general.map(|(n, name)| row(*name, 32, "int32", Register::Low(n))).collect();
    rows.push(row("eip", 32, "int32", Register::Eip));
    rows
}

/// All registers, in gdb's order.
pub(super) fn rows(shape: Shape) -> &'static [Row] {
    static ROWS: OnceLock<(Vec<Row>, usize)> = OnceLock::new();
    let (rows, wide) = ROWS.get_or_init(|| {
        let mut rows: Vec<_> = features().into_iter().flat_map(|feature| feature.rows).collect();
        let wide = rows.len();
        rows.extend(low());
        (rows, wide)
    });
    match shape {
        Shape::Amd64 => &rows[..*wide],
        Shape::Either => rows,
    }
}

/// Which gdbs take the register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One for x86-64.
    Amd64,
    /// One for x86-64 or i386.
    Either,
}

/// The target description (GDB manual, "Target Descriptions").
pub(super) fn description(shape: Shape) -> String {
    let mut xml =
        String::from("<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>");
    if shape == Shape::Amd64 {
        xml.push_str("<architecture>i386:x86-64</architecture>");
    }
    let mut number = 0;
    for (n, Feature { name, types, rows }) in features().into_iter().enumerate() {
        let name = match (shape, name) {
            // gdb 13 for i386 fails an assertion on this feature.
            (Shape::Either, "org.gnu.gdb.i386.segments") => "ringfence.segments",
            _ => name,
        };
        let _ = write!(xml, "<feature name=\"{name}\">{types}");
        for row in rows {
            describe(&mut xml, &row, number, shape);
            number += 1;
        }
        if n == 0 && shape == Shape::Either {
            let behind = self::rows(Shape::Amd64).len();
            for (n, row) in low().iter().enumerate() {
                describe(&mut xml, row, behind + n, shape);
            }
        }
        xml.push_str("</feature>");
    }
    xml.push_str("</target>");
    xml
}

/// One register. A pointer is as wide as gdb's processor has it, so where that may be either
/// there are none.
fn describe(xml: &mut String, row: &Row, number: usize, shape: Shape) {
    let Row { name, bits, kind, .. } = row;
    let kind = match (shape, *kind) {
        (Shape::Either, "data_ptr" | "code_ptr") => "int64",
        (_, kind) => kind,
    };
    let number = format_args!("bitsize=\"{bits}\" regnum=\"{number}\"");
    let _ = write!(xml, "<reg name=\"{name}\" {number} type=\"{kind}\"/>");
}

/// The value of a register, as many of its 16 bytes as the register has.
pub(super) fn get(registers: &Registers, register: Register) -> [u8; 16] {
    let Registers { state, fpu, kernel_gs_base } = registers;
    let value: u64 = match register {
        Register::X87(n) => return fpu.st[n],
        Register::Xmm(n) => return fpu.xmm[n],
        Register::General(n) => *general(&mut state.clone(), n),
        Register::Rip => state.linear_rip(),
        Register::Low(n) => *general(&mut state.clone(), n) & LOW_HALF,
        Register::Eip => state.linear_rip() & LOW_HALF,
        Register::Rflags => state.rflags.bits(),
        Register::Selector(n) => segment(&mut state.clone(), n).selector.into(),
        Register::X87Control(n) => x87_control(fpu)[n].into(),
        Register::Mxcsr => fpu.mxcsr.into(),
        Register::FsBase => state.fs.base,
        Register::GsBase => state.gs.base,
        Register::KernelGsBase => *kernel_gs_base,
        Register::Cr0 => state.cr0.bits(),
        Register::Cr2 => state.cr2,
        Register::Cr3 => state.cr3,
        Register::Cr4 => state.cr4.bits(),
        Register::Cr8 => state.cr8,
        Register::Efer => state.efer.bits(),
    };
    u128::from(value).to_le_bytes()
}

/// Changes a register; false where it cannot be changed by its value alone: a selector
/// outside real mode stands for a descriptor, and most of the x87's control registers follow
/// from others.
pub(super) fn set(registers: &mut Registers, register: Register, bytes: &[u8]) -> bool {
    let mut whole = [0; 16];
    let Some(low) = whole.get_mut(..bytes.len()) else { return false };
    low.copy_from_slice(bytes);
    if get(registers, register)[..bytes.len()] == *bytes {
        return true;
    }
    let value = u128::from_le_bytes(whole) as u64;
    let Registers { state, fpu, kernel_gs_base } = registers;
    match register {
        Register::X87(n) => fpu.st[n] = whole,
        Register::Xmm(n) => fpu.xmm[n] = whole,
        Register::General(n) => *general(state, n) = value,
        Register::Low(n) => {
            let whole = general(state, n);
            *whole = *whole & !LOW_HALF | value;
        }
        Register::Rip => set_linear_rip(state, value),
        Register::Eip => set_linear_rip(state, state.linear_rip() & !LOW_HALF | value),
        Register::Rflags => state.rflags = Rflags::from_bits_retain(value),
        Register::Selector(n) => return set_selector(state, n, value as u16),
        Register::X87Control(n) => return set_x87_control(fpu, n, value as u16),
        Register::Mxcsr => fpu.mxcsr = value as u32,
        Register::FsBase => state.fs.base = value,
        Register::GsBase => state.gs.base = value,
        Register::KernelGsBase => *kernel_gs_base = value,
        Register::Cr0 => state.cr0 = Cr0::from_bits_retain(value),
        Register::Cr2 => state.cr2 = value,
        Register::Cr3 => state.cr3 = value,
        Register::Cr4 => state.cr4 = Cr4::from_bits_retain(value),
        Register::Cr8 => state.cr8 = value,
        Register::Efer => state.efer = Efer::from_bits_retain(value),
    }
    true
}

fn set_linear_rip(state: &mut CpuState, value: u64) {
    let base = if state.mode() == Mode::Long { 0 } else { state.cs.base };
    state.regs.rip = value.wrapping_sub(base);
}

fn general(state: &mut CpuState, n: usize) -> &mut u64 {
    let regs = &mut state.regs;
    match n {
        0 => &mut regs.rax,
        1 => &mut regs.rbx,
        2 => &mut regs.rcx,
        3 => &mut regs.rdx,
        4 => &mut regs.rsi,
        5 => &mut regs.rdi,
        6 => &mut regs.rbp,
        7 => &mut regs.rsp,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

fn segment(state: &mut CpuState, n: usize) -> &mut Segment {
    match n {
        0 => &mut state.cs,
        1 => &mut state.ss,
        2 => &mut state.ds,
        3 => &mut state.es,
        4 => &mut state.fs,
        _ => &mut state.gs,
    }
}

fn set_selector(state: &mut CpuState, n: usize, selector: u16) -> bool {
    let is_real = state.mode() == Mode::Real;
    let segment = segment(state, n);
    if is_real {
        (segment.selector, segment.base) = (selector, u64::from(selector) << 4);
    }
    is_real
}

fn x87_control(fpu: &Fpu) -> [u32; 8] {
    let halves = |address: u64| ((address >> 32) as u32 & 0xFFFF, address as u32);
    let ((ip_high, ip), (dp_high, dp)) = (halves(fpu.ip), halves(fpu.dp));
    // FXSAVE keeps one bit a register, gdb wants two: 3 is empty.
    let tag = |n: u32| if fpu.in_use >> n & 1 != 0 { 0 } else { 3 << (2 * n) };
    let tags = (0..8).map(tag).sum();
    [fpu.control.into(), fpu.status.into(), tags, ip_high, ip, dp_high, dp, fpu.opcode.into()]
}

fn set_x87_control(fpu: &mut Fpu, n: usize, value: u16) -> bool {
    match n {
        0 => fpu.control = value,
        1 => fpu.status = value,
        2 => {
            let used = |n: &u32| value >> (2 * n) & 3 != 3;
            fpu.in_use = (0..8).filter(used).fold(0, |bits, n| bits | 1 << n);
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::debug::CpuInit;

    fn registers(mode: Mode) -> Registers {
        Registers::from(&match mode {
            Mode::Long => CpuInit::long(0, 0, 8, 16),
            _ => CpuInit::real(0, 0),
        })
    }

    #[test]
    fn every_register_is_read_back_as_it_was_written() {
        for (n, row) in rows(Shape::Amd64).iter().enumerate() {
            let mut file = registers(Mode::Long);
            let mut value = [0; 16];
            value[..row.bytes()].fill(n as u8 + 1);
            let value = &value[..row.bytes()];
            if !set(&mut file, row.register, value) {
                let fixed =
                    matches!(row.register, Register::Selector(_) | Register::X87Control(3..=7));
                assert!(fixed, "{}", row.name);
                continue;
            }
            // The x87's registers have 16 bits each, and its tags are either empty or not.
            let count = match row.register {
                Register::X87Control(2) => 0,
                Register::X87Control(_) => 2,
                _ => row.bytes(),
            };
            assert_eq!(get(&file, row.register)[..count], value[..count], "{}", row.name);
            let others = rows(Shape::Amd64).iter().filter(|other| other.register != row.register);
            // What else changes follows from the mode: that of EFLAGS.VM, of CR0 and EFER.
            let moved = others.filter(|it| {
                let fresh = get(&registers(Mode::Long), it.register);
                it.register != Register::Rip && get(&file, it.register) != fresh
            });
            assert_eq!(moved.count(), 0, "{} changed another register", row.name);
        }
    }

    #[test]
    fn gdb_s_numbers_are_those_of_amd64() {
        let name = |n: usize| rows(Shape::Amd64)[n].name.as_str();
        let known = [name(0), name(6), name(16), name(17), name(18), name(24), name(40), name(56)];
        assert_eq!(known, ["rax", "rbp", "rip", "eflags", "cs", "st0", "xmm0", "mxcsr"]);
        for shape in [Shape::Amd64, Shape::Either] {
            assert_eq!(description(shape).matches("<reg ").count(), rows(shape).len());
        }
    }

    #[test]
    fn a_description_for_either_gdb_has_nothing_that_depends_on_it() {
        let text = description(Shape::Either);
        assert!(!text.contains("<architecture>") && !text.contains("_ptr"), "{text}");
        assert!(text.contains("name=\"eax\" bitsize=\"32\" regnum=\"66\""), "{text}");
    }

    #[test]
    fn in_real_mode_rip_is_linear_and_selectors_have_their_base() {
        let mut file = registers(Mode::Real);
        (file.state.regs.rip, file.state.cs.selector, file.state.cs.base) = (0x10, 0x7C0, 0x7C00);
        assert_eq!(get(&file, Register::Rip)[..8], 0x7C10_u64.to_le_bytes());
        assert!(set(&mut file, Register::Rip, &0x7C20_u64.to_le_bytes()));
        assert_eq!(file.state.regs.rip, 0x20);
        assert!(set(&mut file, Register::Selector(2), &0xB800_u32.to_le_bytes()));
        assert_eq!((file.state.ds.selector, file.state.ds.base), (0xB800, 0xB_8000));
    }

    #[test]
    fn x87_tags_go_both_ways() {
        let mut file = registers(Mode::Long);
        file.fpu.in_use = 0b1000_0001;
        let tags = get(&file, Register::X87Control(2));
        assert_eq!(tags[..4], 0x3FFC_u32.to_le_bytes());
        assert!(set(&mut file, Register::X87Control(2), &0xFFFC_u32.to_le_bytes()));
        assert_eq!(file.fpu.in_use, 1);
    }
}

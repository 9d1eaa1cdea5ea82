//! One step up the stack by the image's unwind tables (.eh_frame or .debug_frame: DWARF 5,
//! section 6.4).

use addr2line::gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, LittleEndian, Register, RegisterRule,
    UnwindContext, UnwindSection, UnwindTableRow, X86, X86_64,
};
use object::{Object, ObjectSection};

use super::backtrace::{Cursor, stack_value};
use super::fault::Standing;
use super::symbols::{Bytes, Module, Symbols};
use crate::x86::Mode;

/// The registers' numbers in the tables.
struct Numbers {
    sp: Register,
    bp: Register,
    ra: Register,
}

const LONG: Numbers = Numbers { sp: X86_64::RSP, bp: X86_64::RBP, ra: X86_64::RA };
const SHORT: Numbers = Numbers { sp: X86::ESP, bp: X86::EBP, ra: X86::RA };

/// The caller's frame.
pub(super) fn caller(at: &Standing<'_>, symbols: &Symbols<'_>, cursor: &Cursor) -> Option<Cursor> {
    let rip = at.code.linear(cursor.inside());
    symbols.linked(rip).find_map(|(module, linked)| {
        by_section(at, module, cursor, ".eh_frame", |data, bases| {
            let mut section = EhFrame::new(data, LittleEndian);
            section.set_address_size(if at.cpu.mode() == Mode::Long { 8 } else { 4 });
            row(&section, bases, linked)
        })
        .or_else(|| {
            by_section(at, module, cursor, ".debug_frame", |data, bases| {
                let mut section = DebugFrame::new(data, LittleEndian);
                section.set_address_size(if at.cpu.mode() == Mode::Long { 8 } else { 4 });
                row(&section, bases, linked)
            })
        })
    })
}

fn by_section(
    at: &Standing<'_>,
    module: &Module<'_>,
    cursor: &Cursor,
    name: &str,
    find: impl Fn(&[u8], &BaseAddresses) -> Option<UnwindTableRow<usize>>,
) -> Option<Cursor> {
    let section = module.file.section_by_name(name)?;
    let text = module.file.section_by_name(".text").map_or(0, |text| text.address());
    let bases = BaseAddresses::default().set_eh_frame(section.address()).set_text(text);
    step(at, &find(section.data().ok()?, &bases)?, cursor)
}

fn row<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    address: u64,
) -> Option<UnwindTableRow<usize>> {
    let mut context = UnwindContext::new();
    let found = section
        .unwind_info_for_address(bases, &mut context, address, |s, b, o| s.cie_from_offset(b, o));
    found.ok().cloned()
}

fn step(at: &Standing<'_>, row: &UnwindTableRow<usize>, cursor: &Cursor) -> Option<Cursor> {
    let numbers = if at.cpu.mode() == Mode::Long { LONG } else { SHORT };
    let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else { return None };
    let base = match register {
        it if it == numbers.sp => cursor.rsp,
        it if it == numbers.bp => cursor.rbp,
        _ => return None,
    };
    let cfa = base.wrapping_add_signed(offset);
    let saved = |register: Register| match row.register(register) {
        Some(RegisterRule::Offset(n)) => stack_value(at, cfa.wrapping_add_signed(n)),
        _ => None,
    };
    let rbp = saved(numbers.bp).unwrap_or(cursor.rbp);
    Some(Cursor { rip: saved(numbers.ra)?, rsp: cfa, rbp, exact: false })
}

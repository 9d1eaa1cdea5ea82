//! Which function an exit belongs to: that of its instruction, which RIP may have left.

use std::sync::LazyLock;

use crate::inspect::Functions;
use crate::kvm::{Backend, ExitKind};
use crate::vcpu::Record;

/// Does KVM finish an OUT before it tells of it? Its emulator does, which kvm_pvm runs ring 0
/// with; the others tell first.
static FINISHES_OUT: LazyLock<bool> = LazyLock::new(|| Backend::detect() == Backend::KvmPvm);

/// An address inside the instruction that made an exit.
pub(super) fn inside(record: &Record) -> u64 {
    inside_on(record, *FINISHES_OUT)
}

fn inside_on(record: &Record, finishes_out: bool) -> u64 {
    let finished = match record.kind {
        ExitKind::Hlt | ExitKind::MmioWrite => true,
        ExitKind::PioOut => finishes_out && record.count == 1,
        _ => false,
    };
    record.rip.wrapping_sub(finished.into())
}

/// The function of an exit, and how far RIP is from its start.
pub(super) fn function_of<'f>(functions: &'f Functions, record: &Record) -> Option<(&'f str, u64)> {
    let inside = inside(record);
    let (name, offset) = functions.name_of(inside)?;
    Some((name, offset.wrapping_add(record.rip.wrapping_sub(inside))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Exit;

    #[test]
    fn the_last_instruction_of_a_function_is_its_own() {
        let functions =
            Functions::named(&[(0x1000, 0x1010, "guilty"), (0x1010, 0x1020, "innocent")]);
        let name = |exit: &Exit<'_>| function_of(&functions, &Record::new(0x1010, 0, exit));
        assert_eq!(name(&Exit::Hlt), Some(("guilty", 0x10)));
        assert_eq!(name(&Exit::MmioWrite { address: 0, data: &[0] }), Some(("guilty", 0x10)));
        assert_eq!(name(&Exit::Interrupted), Some(("innocent", 0)));
        let out = Record::new(0x1010, 0, &Exit::PioOut { port: 1, size: 1, data: &[0] });
        assert_eq!((inside_on(&out, true), inside_on(&out, false)), (0x100F, 0x1010));
        let string = Record::new(0x1010, 0, &Exit::PioOut { port: 1, size: 1, data: &[0; 2] });
        assert_eq!(inside_on(&string, true), 0x1010);
    }
}

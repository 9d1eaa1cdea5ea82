//! What exits cost on this host, in cycles of the guest's clock: a table. Called by the audit; takes
//! what the instructions have shown, and measures what is no instruction of the table.

use super::Error;
use super::context::{Context, LONG_0, LONG_3};
use super::ground;
use super::instruction::Instruction;
use super::judge::Court;
use super::measure::Cycles;
use super::program::Plan;
use super::report::{ContextFinding, Cost, InstructionFinding, Ran};
use super::table::INSTRUCTIONS;
use crate::irq::Irqchip;

/// The instructions of ring 3 of long mode beside those that trap there.
const RING_3: &[&str] = &["nop", "rdtsc", "cpuid"];
/// Those of ring 0 of long mode.
const RING_0: &[&str] = &[
    "nop",
    "rdtsc",
    "cpuid",
    "rdmsr",
    "wrmsr",
    "mov r, cr0",
    "mov cr0, r",
    "mov cr3, r",
    "mov cr4, r",
    "mov r, cr8",
    "mov dr7, r",
    "invlpg",
    "wbinvd",
    "xsetbv",
    "lgdt",
    "vmcall",
    "vmmcall",
    "hlt",
    "in",
    "out",
    "outs",
];

/// One that is not: its code, and with which interrupt controllers.
struct Extra {
    name: &'static str,
    bytes: &'static [u8],
    irqchip: Irqchip,
    /// Each time in a new VM: it is what is done for the first time that costs.
    fresh: bool,
}

/// [`ground::NOWHERE`], as an operand.
const NOWHERE: [u8; 4] = (ground::NOWHERE as u32).to_le_bytes();

#[rustfmt::skip]
const EXTRAS: &[Extra] = &[
    Extra { name: "read of an address without memory", bytes: &[0x8B, 0x04, 0x25, NOWHERE[0], NOWHERE[1], NOWHERE[2], NOWHERE[3]], irqchip: Irqchip::None, fresh: false },
    Extra { name: "write to an address without memory", bytes: &[0x89, 0x04, 0x25, NOWHERE[0], NOWHERE[1], NOWHERE[2], NOWHERE[3]], irqchip: Irqchip::None, fresh: false },
    // mov al, [rsi + 1 MiB]; add rsi, 4096.
    Extra { name: "first touch of a page", bytes: &[0x8A, 0x86, 0, 0, 0x10, 0, 0x48, 0x81, 0xC6, 0, 0x10, 0, 0], irqchip: Irqchip::None, fresh: true },
    Extra { name: "in from a device of the kernel's (PIC)", bytes: &[0xE4, 0x21], irqchip: Irqchip::Full, fresh: false },
    Extra { name: "out to a device of the kernel's (PIC)", bytes: &[0xE6, 0x21], irqchip: Irqchip::Full, fresh: false },
];

/// All of them, of each ring the cheapest first.
pub fn examine(court: &mut Court<'_>, rows: &[InstructionFinding]) -> Result<Vec<Cost>, Error> {
    let mut costs = vec![];
    for context in [LONG_0, LONG_3] {
        for row in INSTRUCTIONS {
            costs.extend(of_instruction(court, rows, row, context)?);
        }
    }
    for extra in EXTRAS {
        court.lab.set_irqchip(extra.irqchip);
        let plan = Plan { bytes: extra.bytes, ..Plan::empty(LONG_0) };
        if let Some((ran, cycles)) = court.measure(&plan, extra.fresh)? {
            costs.push(cost(extra.name, LONG_0, ran, cycles));
        }
    }
    court.lab.set_irqchip(Irqchip::None);
    costs.sort_by(|one, other| {
        one.context.cmp(&other.context).then(one.cycles.total_cmp(&other.cycles))
    });
    Ok(costs)
}

fn of_instruction(
    court: &mut Court<'_>,
    rows: &[InstructionFinding],
    row: &Instruction,
    context: Context,
) -> Result<Option<Cost>, Error> {
    let finding = rows.iter().find(|finding| finding.name == row.name);
    let cell = finding.into_iter().flat_map(|finding| &finding.cells);
    let Some(cell) = cell.into_iter().find(|cell| cell.context == context.name) else {
        return Ok(None);
    };
    let traps = matches!(cell.ran, Ran::TrappedKvm | Ran::TrappedUser);
    let wanted = match context.ring {
        0 => RING_0.contains(&row.name),
        _ => traps || RING_3.contains(&row.name),
    };
    let plan = Plan::of(row, context).filter(|_| wanted && cell.cycles.is_some());
    let Some(plan) = plan else { return Ok(None) };
    let found = court.measure(&plan, false)?;
    Ok(found.map(|(_, cycles)| cost(row.name, context, cell.ran, cycles)))
}

fn cost(name: &str, context: Context, ran: Ran, cycles: Cycles) -> Cost {
    Cost {
        name: name.to_owned(),
        context: context.name.to_owned(),
        ran,
        reasons: vec![],
        cycles: cycles.median,
        least: cycles.least,
        spread: cycles.spread,
    }
}

/// What was measured well is also what is said elsewhere.
pub fn agree(
    costs: &[Cost],
    contexts: &mut [ContextFinding],
    instructions: &mut [InstructionFinding],
) {
    for cost in costs {
        let row = instructions.iter_mut().find(|row| row.name == cost.name);
        let cell = row.and_then(|row| row.cells.iter_mut().find(|it| it.context == cost.context));
        if let Some(cell) = cell {
            cell.cycles = Some(cost.cycles);
        }
        let context = contexts.iter_mut().find(|context| context.name == cost.context);
        if let Some(context) = context.filter(|_| cost.name == "nop") {
            context.nop_cycles = Some(cost.cycles);
        }
    }
}

/// The code of a cost that is no instruction of the table, and its interrupt controllers.
pub fn extra(name: &str) -> Option<(&'static [u8], Irqchip)> {
    let extra = EXTRAS.iter().find(|extra| extra.name == name)?;
    Some((extra.bytes, extra.irqchip))
}

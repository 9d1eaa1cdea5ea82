//! A machine that stands still, in words: for gdb's `info threads`, its console, and the
//! `monitor` commands.

use std::fmt::Write as _;

use crate::machine::debug::{CpuState, Debugger, End, Level, Limits, Mode, Reason, RunState, Walk};

/// A vCPU in a few words.
pub(super) fn cpu(debugger: &Debugger, cpu: u32) -> String {
    let Some(state) = debugger.state(cpu) else { return "runs".to_owned() };
    let doing = match debugger.run_state(cpu) {
        Some(RunState::Halted) => ", halted",
        Some(RunState::HaltedForEver) => ", halted for ever or not started",
        _ => "",
    };
    format!("{}, ring {}{doing}", mode(&state), state.ring())
}

fn mode(state: &CpuState) -> String {
    let mode = match state.mode() {
        Mode::Real => "real mode",
        Mode::Protected => "protected mode",
        Mode::Long => return "long mode".to_owned(),
    };
    format!("{mode}, {}-bit code", state.code_bits())
}

/// All that gdb's registers leave out: the hidden parts of segments, the tables.
pub(super) fn system(debugger: &Debugger, cpu: u32) -> String {
    let Some(state) = debugger.state(cpu) else { return "the vCPU does not answer\n".to_owned() };
    let mut text = format!("vCPU {cpu}: {}\n", self::cpu(debugger, cpu));
    let segments = [
        ("cs", &state.cs),
        ("ds", &state.ds),
        ("es", &state.es),
        ("fs", &state.fs),
        ("gs", &state.gs),
        ("ss", &state.ss),
        ("tr", &state.tr),
        ("ldt", &state.ldt),
    ];
    for (name, it) in segments {
        let present = if it.present { "" } else { " not present" };
        let _ = writeln!(
            text,
            "{name:<4} {:#06x} base {:#x} limit {:#x} type {:#x} dpl {}{present}",
            it.selector, it.base, it.limit, it.kind, it.dpl
        );
    }
    for (name, it) in [("gdtr", state.gdt), ("idtr", state.idt)] {
        let _ = writeln!(text, "{name} base {:#x} limit {:#x}", it.base, it.limit);
    }
    let _ = writeln!(text, "cr0  {}\ncr2  {:#x}\ncr3  {:#x}", state.cr0, state.cr2, state.cr3);
    let _ = writeln!(text, "cr4  {}\nefer {}", state.cr4, state.efer);
    text
}

/// A page walk, a level a line.
pub(super) fn walk(walk: &Walk) -> String {
    let mut text = format!("{:#x}:\n", walk.linear);
    for Level { table, index, at, entry } in &walk.levels {
        let _ = match entry {
            Some(entry) => {
                writeln!(text, "{table}[{index}] at {at:#x}: {entry:#018x}{}", flags(*entry))
            }
            None => writeln!(text, "{table}[{index}] at {at:#x}: no memory"),
        };
    }
    let _ = match &walk.end {
        End::Page { physical, .. } if walk.levels.is_empty() => {
            writeln!(text, "paging is off: physical {physical:#x}")
        }
        End::Page { .. } => writeln!(text, "physical {}", walk.end),
        end => writeln!(text, "not mapped: {end}"),
    };
    text
}

/// The low bits that every format of entry has in common (Intel SDM Vol. 3A, 5.3 to 5.5).
fn flags(entry: u64) -> String {
    const NAMES: [(u32, &str); 7] = [
        (0, "present"),
        (1, "writable"),
        (2, "user"),
        (5, "accessed"),
        (6, "dirty"),
        (7, "large"),
        (63, "no-execute"),
    ];
    NAMES
        .iter()
        .filter(|(bit, _)| entry >> bit & 1 != 0)
        .map(|(_, name)| format!(" {name}"))
        .collect()
}

/// What gdb cannot show by a stop reply alone.
pub(super) fn reason(reason: &Reason) -> Option<String> {
    match reason {
        Reason::Died(verdict) => {
            Some(format!("{verdict}; it can be looked at, and ends when it is let go"))
        }
        Reason::Refused(why) => Some((*why).to_owned()),
        Reason::Started => Some("the guest stands before its first instruction".to_owned()),
        _ => None,
    }
}

/// What this KVM cannot do.
pub(super) fn limits(limits: Limits) -> String {
    let Limits { int3, hardware, hardware_in_ring3, watch, step, step_in_ring3 } = limits;
    let cannot = [
        (!int3 && hardware, "INT3 does not stop: `break` takes one of the four debug registers"),
        (!hardware && step, "breakpoints are looked for by single-stepping, which is slow"),
        (!hardware && !step, "nothing stops the guest: there are no breakpoints"),
        (
            !watch,
            "data watchpoints never fire: `watch` is refused, see `set can-use-hw-watchpoints 0`",
        ),
        (!step, "instructions cannot be single-stepped"),
        (step && !step_in_ring3, "ring 3 cannot be single-stepped"),
        (hardware && !hardware_in_ring3, "ring 3 has no breakpoints"),
    ];
    cannot.iter().filter(|(it, _)| *it).map(|(_, text)| format!("on this KVM {text}\n")).collect()
}

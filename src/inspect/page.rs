//! The autopsy as a page for people.

use std::fmt::{self, Display, Formatter, Write as _};

use super::cause::fault_kind;
use super::delivery::{Attempt, Gate};
use super::walk::{End, Walk};
use super::{Autopsy, CpuFindings, Found, NamedWalk, Registers};
use crate::x86::{CpuState, DescriptorTable, Regs, Segment};

/// vCPUs that the page describes: those that tell most come first.
const MOST_CPUS: usize = 16;

impl Display for Autopsy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary)?;
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        self.cpus.iter().take(MOST_CPUS).try_for_each(|cpu| write!(f, "{cpu}"))?;
        if let Some(more) = self.cpus.get(MOST_CPUS..).filter(|more| !more.is_empty()) {
            let mut more: Vec<_> = more.iter().map(|cpu| cpu.id).collect();
            more.sort_unstable();
            writeln!(f, "\nvCPU {}: in the JSON report and the core", ranges(&more))?;
        }
        match self.never_started[..] {
            [] => Ok(()),
            _ => writeln!(f, "\nvCPU {}: never started", ranges(&self.never_started)),
        }
    }
}

impl Display for CpuFindings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let died = if self.died { ", on which it died" } else { "" };
        match (self.mode, self.ring, self.paging) {
            (Some(mode), Some(ring), Some(paging)) => writeln!(
                f,
                "\nvCPU {}{died}: {}, ring {ring}, paging {}",
                self.id,
                mode.words(),
                paging.words()
            )?,
            _ => writeln!(f, "\nvCPU {}{died}", self.id)?,
        }
        for words in &self.kvm {
            writeln!(f, "  KVM: {words}")?;
        }
        deliveries(f, self)?;
        match &self.registers {
            Registers::Whole(state) => {
                general(f, &state.regs)?;
                system(f, state)?;
            }
            Registers::General { regs, rflags } => {
                general(f, regs)?;
                writeln!(f, "    rflags {rflags}")?;
            }
        }
        interrupts(f, self)?;
        code(f, self)?;
        backtrace(f, self)?;
        if !self.walks.is_empty() {
            writeln!(f, "  page walks")?;
        }
        self.walks.iter().try_for_each(|it| walk(f, it))?;
        if !self.exits.is_empty() {
            writeln!(f, "  last exits")?;
        }
        self.exits.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// "1-7, 9"
fn ranges(ascending: &[u32]) -> String {
    let parts = ascending.chunk_by(|a, b| a + 1 == *b).map(|part| match part {
        [first, .., last] => format!("{first}-{last}"),
        _ => part.iter().map(u32::to_string).collect(),
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn deliveries(f: &mut Formatter<'_>, cpu: &CpuFindings) -> fmt::Result {
    let Some(chain) = &cpu.faults else { return Ok(()) };
    writeln!(f, "  exceptions")?;
    for attempt in &chain.attempts {
        writeln!(f, "    {}", fault_kind(&attempt.event))?;
        if let Some(it) = &attempt.gate {
            writeln!(f, "      gate {}", gate(it))?;
        }
        stack(f, attempt)?;
        match &attempt.obstacle {
            Some(words) => writeln!(f, "      -> {words}")?,
            None => writeln!(f, "      the handler can be entered")?,
        }
    }
    if chain.triple_fault {
        writeln!(f, "    triple fault")?;
    }
    Ok(())
}

fn stack(f: &mut Formatter<'_>, attempt: &Attempt) -> fmt::Result {
    let Some(at) = attempt.stack else { return Ok(()) };
    let from = attempt.stack_from.as_ref().map_or(String::new(), |from| format!(" ({from})"));
    writeln!(f, "      stack {at:#x}{from}")
}

fn gate(gate: &Gate) -> String {
    let Gate { at, selector, offset, kind, present, dpl, ist } = gate;
    let mut text = format!("at {at:#x}: {selector:#x}:{offset:#x}");
    if let Some(kind) = kind {
        let present = if *present { "present" } else { "not present" };
        let _ = write!(text, ", type {kind:#x}, {present}, dpl {dpl}, ist {ist}");
    }
    text
}

fn general(f: &mut Formatter<'_>, regs: &Regs) -> fmt::Result {
    let &Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip } =
        regs;
    writeln!(f, "  registers")?;
    writeln!(f, "    rip {rip:016x}  rsp {rsp:016x}  rbp {rbp:016x}")?;
    writeln!(f, "    rax {rax:016x}  rbx {rbx:016x}  rcx {rcx:016x}  rdx {rdx:016x}")?;
    writeln!(f, "    rsi {rsi:016x}  rdi {rdi:016x}  r8  {r8:016x}  r9  {r9:016x}")?;
    writeln!(f, "    r10 {r10:016x}  r11 {r11:016x}  r12 {r12:016x}  r13 {r13:016x}")?;
    writeln!(f, "    r14 {r14:016x}  r15 {r15:016x}")
}

fn system(f: &mut Formatter<'_>, state: &CpuState) -> fmt::Result {
    writeln!(f, "    rflags {}", state.rflags)?;
    writeln!(f, "    cr0 {}", state.cr0)?;
    writeln!(f, "    cr2 {:#x}  cr3 {:#x}  cr8 {:#x}", state.cr2, state.cr3, state.cr8)?;
    writeln!(f, "    cr4 {}", state.cr4)?;
    writeln!(f, "    efer {}", state.efer)?;
    for (name, it) in [
        ("cs", &state.cs),
        ("ss", &state.ss),
        ("ds", &state.ds),
        ("es", &state.es),
        ("fs", &state.fs),
        ("gs", &state.gs),
        ("tr", &state.tr),
        ("ldt", &state.ldt),
    ] {
        writeln!(f, "    {name:3} {}", segment(it))?;
    }
    let table = |it: DescriptorTable| format!("{:#x} limit {:#x}", it.base, it.limit);
    writeln!(f, "    gdt {}  idt {}", table(state.gdt), table(state.idt))
}

fn segment(it: &Segment) -> String {
    let &Segment { selector, base, limit, kind, dpl, code_or_data, present, default_32, long } = it;
    if !present {
        return format!("{selector:#06x} (none)");
    }
    let what = match (code_or_data, kind & 8 != 0) {
        (false, _) => "system",
        (true, true) if long => "64-bit code",
        (true, true) if default_32 => "32-bit code",
        (true, true) => "16-bit code",
        (true, false) => "data",
    };
    format!("{selector:#06x} base {base:#x} limit {limit:#x} {what}, type {kind:#x}, dpl {dpl}")
}

fn interrupts(f: &mut Formatter<'_>, cpu: &CpuFindings) -> fmt::Result {
    let events = &cpu.events;
    let mut waiting = Vec::new();
    waiting.extend(events.exception.map(|vector| format!("exception {vector}")));
    waiting.extend(events.interrupt.map(|vector| format!("interrupt {vector:#x}")));
    waiting.extend(events.nmi.then(|| "NMI".to_owned()));
    if !waiting.is_empty() {
        writeln!(f, "  being delivered: {}", waiting.join(", "))?;
    }
    let Some(apic) = &cpu.local_apic else { return Ok(()) };
    let list = |vectors: &[u8]| match vectors {
        [] => "none".to_owned(),
        _ => vectors.iter().map(|v| format!("{v:#x}")).collect::<Vec<_>>().join(" "),
    };
    writeln!(
        f,
        "  local APIC {}: pending {}; in service {}; task priority {:#x}",
        if apic.enabled { "on" } else { "off" },
        list(&apic.pending),
        list(&apic.in_service),
        apic.task_priority
    )
}

fn code(f: &mut Formatter<'_>, cpu: &CpuFindings) -> fmt::Result {
    let here = cpu.code.iter().find(|line| line.here);
    let unreadable = cpu.walks.iter().find(|it| it.what == "RIP").map(|it| end(&it.walk));
    match (here, unreadable) {
        (Some(line), _) if line.rip == cpu.registers.regs().rip => writeln!(f, "  code")?,
        (Some(_), _) => writeln!(f, "  code (RIP stands behind the instruction)")?,
        (None, Some(end)) if cpu.code.is_empty() => {
            writeln!(f, "  code at RIP cannot be read: {end}")?;
        }
        (None, Some(end)) if cpu.backtrace.len() == 1 => {
            writeln!(f, "  code before RIP, where none can be read: {end}")?;
        }
        (None, Some(end)) => {
            let interrupted =
                cpu.backtrace.get(1).is_some_and(|it| it.found == Found::InterruptFrame);
            let whose = if interrupted { "what was interrupted" } else { "the caller" };
            writeln!(f, "  code of {whose}, from which RIP went where none can be read: {end}")?;
        }
        (None, None) => {}
    }
    let width = cpu.code.iter().map(|line| line.bytes.len()).max().unwrap_or(0);
    for line in &cpu.code {
        let mark = if line.here { "->" } else { "  " };
        let at = cpu.address(line.rip);
        writeln!(f, "    {mark} {at}  {:width$}  {}", line.bytes, line.text)?;
    }
    Ok(())
}

fn backtrace(f: &mut Formatter<'_>, cpu: &CpuFindings) -> fmt::Result {
    if cpu.backtrace.is_empty() {
        return Ok(());
    }
    writeln!(f, "  backtrace")?;
    let mut n = 0;
    for same in cpu.backtrace.chunk_by(|a, b| a.rip == b.rip) {
        let last = n + same.len() - 1;
        let numbers = if n == last { format!("#{n}") } else { format!("#{n} to #{last}") };
        n = last + 1;
        let place = same[0].place.as_ref().map_or(String::new(), |place| format!(" {place}"));
        write!(f, "    {numbers} {}{place}", cpu.address(same[0].rip))?;
        let inlined = same[0].place.iter().flat_map(|place| &place.inlined);
        inlined.into_iter().try_for_each(|name| write!(f, ", inlined {name}"))?;
        let interrupted = same.iter().any(|it| it.found == Found::InterruptFrame);
        writeln!(f, "{}", if interrupted { ", interrupted by the handler" } else { "" })?;
    }
    if cpu.backtrace_cut { writeln!(f, "    ... and further callers") } else { Ok(()) }
}

fn walk(f: &mut Formatter<'_>, named: &NamedWalk) -> fmt::Result {
    let NamedWalk { what, walk, guarded } = named;
    write!(f, "    {what} {:#x}:", walk.linear)?;
    for level in &walk.levels {
        let entry = level.entry.map_or("no memory".to_owned(), |entry| format!("{entry:#x}"));
        write!(f, " {}[{}] {entry}", level.table, level.index)?;
    }
    let guarded = guarded.map_or(String::new(), |words| format!(", {words}"));
    writeln!(f, " {}{guarded}", end(walk))
}

fn end(walk: &Walk) -> String {
    match &walk.end {
        End::NotPresent | End::Reserved { .. } | End::NoTable => format!("<- {}", walk.end),
        End::NotCanonical => walk.end.to_string(),
        End::Page { physical, memory: true, .. } if walk.levels.is_empty() => {
            format!("-> {physical:#x}")
        }
        End::Page { physical, .. } if walk.levels.is_empty() => {
            format!("-> {physical:#x}, no memory there")
        }
        End::Page { .. } => format!("-> {}", walk.end),
    }
}

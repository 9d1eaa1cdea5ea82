//! `ringfence run --dry-run`: the resolved machine, its memory map and the entry state.

use std::io::{self, Write};

use crate::machine::Plan;
use crate::x86::{CpuInit, Segment};

pub(super) fn print(plan: &Plan, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, plan)?;
        return writeln!(out);
    }
    machine(&mut out, plan)?;
    writeln!(out, "\nmemory map")?;
    for (range, kind) in &plan.memory_map.entries {
        writeln!(out, "  {:#012x}..{:#012x}  {kind:?}", range.start, range.end)?;
    }
    writeln!(out, "\nplaced")?;
    for placed in &plan.loaded.placed {
        writeln!(
            out,
            "  {:#012x}..{:#012x}  {}{}",
            placed.range.start,
            placed.range.end,
            placed.what,
            if placed.read_only { " (read-only)" } else { "" }
        )?;
    }
    writeln!(out, "\ndevices")?;
    for device in &plan.devices {
        let (base, end) = (device.base, device.base + device.len - 1);
        writeln!(out, "  {} {base:#06x}..={end:#06x}  {}", device.bus, device.name)?;
    }
    entry(&mut out, &plan.loaded.cpu)
}

fn machine(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let config = &plan.config;
    writeln!(out, "machine")?;
    writeln!(out, "  image     {}: {}", config.image.display(), plan.loaded.description)?;
    writeln!(out, "  memory    {} MiB", config.memory >> 20)?;
    writeln!(out, "  cpus      {}", config.cpus)?;
    writeln!(out, "  cpu       {}", config.cpu)?;
    writeln!(out, "  irqchip   {:?}", plan.irqchip)?;
    writeln!(out, "  cmdline   {:?}", plan.cmdline)?;
    for module in &config.modules {
        writeln!(out, "  module    {} {}", module.path.display(), module.args)?;
    }
    if let Some(initrd) = &config.initrd {
        writeln!(out, "  initrd    {}", initrd.display())?;
    }
    if let Some(limit) = config.timeout {
        writeln!(out, "  timeout   {}", humantime::format_duration(limit))?;
    }
    Ok(())
}

fn entry(out: &mut impl Write, cpu: &CpuInit) -> io::Result<()> {
    let regs = &cpu.regs;
    writeln!(out, "\nentry state ({:?} mode)", cpu.mode)?;
    writeln!(out, "  rip {:#018x}  rsp {:#018x}  rflags {}", regs.rip, regs.rsp, cpu.rflags)?;
    writeln!(out, "  rax {:#018x}  rbx {:#018x}  rcx {:#018x}", regs.rax, regs.rbx, regs.rcx)?;
    writeln!(out, "  rdx {:#018x}  rsi {:#018x}  rdi {:#018x}", regs.rdx, regs.rsi, regs.rdi)?;
    for (name, segment) in [("cs", &cpu.cs), ("ds-gs", &cpu.data), ("ss", &cpu.ss), ("tr", &cpu.tr)]
    {
        writeln!(out, "  {name:5} {}", words(segment))?;
    }
    writeln!(out, "  gdtr  {:#x} limit {:#x}", cpu.gdt.base, cpu.gdt.limit)?;
    writeln!(out, "  idtr  {:#x} limit {:#x}", cpu.idt.base, cpu.idt.limit)?;
    writeln!(out, "  cr0 {}", cpu.cr0)?;
    writeln!(out, "  cr3 {:#x}", cpu.cr3)?;
    writeln!(out, "  cr4 {}", cpu.cr4)?;
    writeln!(out, "  efer {}", cpu.efer)
}

fn words(segment: &Segment) -> String {
    let size = match (segment.long, segment.default_32) {
        (true, _) => "64-bit",
        (_, true) => "32-bit",
        _ => "16-bit",
    };
    let Segment { selector, base, limit, kind, .. } = segment;
    format!("selector {selector:#06x} base {base:#x} limit {limit:#x} type {kind:#x} {size}")
}

//! What gdbstub asks of a target, answered by the machine: registers, memory, breakpoints,
//! resuming. vCPU n is thread n + 1.

use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId, Registers as File};
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::registers::{self, Register, Row, Shape, description, rows};
use super::{describe, monitor};
use crate::machine::debug::{Action, Debugger, Event, Point, Registers, Space, Watch};

/// EFAULT: gdb says "Cannot access memory".
const NO_MEMORY: u8 = 14;
/// EINVAL.
const NOT_POSSIBLE: u8 = 22;

/// x86-64 with what gdb is told of it.
pub(super) enum X86 {}

/// A register by gdb's number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(usize);

/// All registers as gdb's `g` packet has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bytes(Vec<u8>);

impl Arch for X86 {
    type Usize = u64;
    type Registers = Bytes;
    type BreakpointKind = usize;
    type RegId = Number;

    /// What a guest has instead depends on it.
    fn target_description_xml() -> Option<&'static str> {
        None
    }
}

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((Self(id), NonZeroUsize::new(rows(Shape::Either).get(id)?.bytes())))
    }
}

impl File for Bytes {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        let before = rows(Shape::Amd64).iter().take_while(|row| row.register != Register::Rip);
        let at = before.map(|row| row.bytes()).sum();
        self.0.get(at..at + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(Some(*byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.to_vec();
        let fits = |shape| bytes.len() == rows(shape).iter().map(|row| row.bytes()).sum::<usize>();
        if fits(Shape::Amd64) || fits(Shape::Either) { Ok(()) } else { Err(()) }
    }
}

/// The machine, as gdb's target.
pub(super) struct Guest {
    pub(super) debugger: Debugger,
    shape: Shape,
    description: String,
    /// What addresses mean (`monitor physical`).
    pub(super) space: Space,
    /// Whose page tables a breakpoint's address goes through, and who `monitor` asks: the
    /// vCPU that stopped, or that gdb looked at last.
    pub(super) cpu: u32,
    /// What gdb wants each vCPU to do, where it said.
    actions: Vec<Option<Action>>,
    /// Those it did not name stay.
    locked: bool,
    /// An answer to a resume that did not run.
    pub(super) at_once: Option<Event>,
    /// What gdb's console is to show as soon as the guest runs: before that gdb takes no text.
    pub(super) notes: Vec<String>,
    /// What this gdb has been told; it sets its breakpoints anew whenever the guest runs.
    told: Vec<&'static str>,
}

impl Guest {
    pub(super) fn new(debugger: Debugger) -> Self {
        let (space, actions) = (Space::Linear, Vec::new());
        let (notes, told) = (Vec::new(), Vec::new());
        let shape = if debugger.is_32_bit() { Shape::Either } else { Shape::Amd64 };
        let description = description(shape);
        Self {
            debugger,
            shape,
            description,
            space,
            cpu: 0,
            actions,
            locked: false,
            at_once: None,
            notes,
            told,
        }
    }

    fn rows(&self) -> &'static [Row] {
        rows(self.shape)
    }

    /// Another gdb has come; the guest stands still on vCPU `cpu`.
    pub(super) fn start_over(&mut self, cpu: u32) {
        (self.cpu, self.space, self.at_once) = (cpu, Space::Linear, None);
        self.notes.clear();
        self.told.clear();
    }

    fn look_at(&mut self, tid: Tid) -> u32 {
        self.cpu = cpu_of(tid);
        self.cpu
    }

    fn file(&self, cpu: u32) -> TargetResult<Registers, Self> {
        self.debugger.registers(cpu).ok_or(TargetError::NonFatal)
    }

    fn change(
        &mut self,
        cpu: u32,
        change: impl FnOnce(&mut Registers) -> bool,
    ) -> TargetResult<(), Self> {
        let mut file = self.file(cpu)?;
        if !change(&mut file) {
            return Err(TargetError::Errno(NOT_POSSIBLE));
        }
        self.debugger.set_registers(cpu, file).ok_or(TargetError::Errno(NOT_POSSIBLE))
    }

    fn set(&mut self, tid: Tid, action: Action) {
        if let Some(of_cpu) = self.actions.get_mut(tid.get() - 1) {
            *of_cpu = Some(action);
        }
    }

    /// A refusal reaches gdb as an error number, so the words go to standard error too.
    fn add(&mut self, address: u64, len: u64, point: Point) -> TargetResult<bool, Self> {
        match self.debugger.add(self.cpu, address, len, point) {
            Ok(note) => {
                if let Some(note) = note.filter(|note| !self.told.contains(note)) {
                    self.told.push(note);
                    self.notes.push(note.to_owned());
                }
                Ok(true)
            }
            Err(refusal) => {
                let text = format!("cannot set a {} at {address:#x}: {refusal}", name(point));
                log::warn!("gdb: {text}");
                self.notes.push(text);
                Ok(false)
            }
        }
    }

    /// A breakpoint that a reset took away counts as removed.
    fn remove(&mut self, address: u64, len: u64, point: Point) -> TargetResult<bool, Self> {
        self.debugger.remove(address, len, point);
        Ok(true)
    }
}

fn name(point: Point) -> &'static str {
    match point {
        Point::Software | Point::Hardware => "breakpoint",
        Point::Watch(_) => "watchpoint",
    }
}

impl Target for Guest {
    type Arch = X86;
    type Error = std::convert::Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl TargetDescriptionXmlOverride for Guest {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.description.as_bytes().get(from..).unwrap_or_default();
        let len = rest.len().min(length).min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, bytes: &mut Bytes, tid: Tid) -> TargetResult<(), Self> {
        let cpu = self.look_at(tid);
        let file = self.file(cpu)?;
        let one = |row: &registers::Row| {
            registers::get(&file, row.register).into_iter().take(row.bytes())
        };
        bytes.0 = self.rows().iter().flat_map(one).collect();
        Ok(())
    }

    fn write_registers(&mut self, bytes: &Bytes, tid: Tid) -> TargetResult<(), Self> {
        let (cpu, rows) = (self.look_at(tid), self.rows());
        self.change(cpu, |file| {
            // Of a register and its half the one counts that has changed.
            let before = file.clone();
            let mut rest = bytes.0.as_slice();
            rows.iter().all(|row| {
                let Some((value, after)) = rest.split_at_checked(row.bytes()) else { return false };
                rest = after;
                let same = registers::get(&before, row.register)[..row.bytes()] == *value;
                same || registers::set(file, row.register, value)
            })
        })
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let cpu = self.look_at(tid);
        match self.debugger.read(cpu, self.space, address, data) {
            0 => Err(TargetError::Errno(NO_MEMORY)),
            done => Ok(done),
        }
    }

    fn write_addrs(&mut self, address: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let cpu = self.look_at(tid);
        let written = self.debugger.write(cpu, self.space, address, data);
        if written { Ok(()) } else { Err(TargetError::Errno(NO_MEMORY)) }
    }

    fn list_active_threads(&mut self, found: &mut dyn FnMut(Tid)) -> Result<(), Self::Error> {
        (0..self.debugger.cpus()).map(tid).for_each(found);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

/// The thread that a vCPU is to gdb.
pub(super) fn tid(cpu: u32) -> Tid {
    Tid::MIN.saturating_add(cpu as usize)
}

impl SingleRegisterAccess<Tid> for Guest {
    fn read_register(
        &mut self,
        tid: Tid,
        Number(n): Number,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let cpu = self.look_at(tid);
        let row = self.rows().get(n).ok_or(TargetError::NonFatal)?;
        let value = registers::get(&self.file(cpu)?, row.register);
        let room = buffer.get_mut(..row.bytes()).ok_or(TargetError::NonFatal)?;
        room.copy_from_slice(&value[..row.bytes()]);
        Ok(row.bytes())
    }

    fn write_register(
        &mut self,
        tid: Tid,
        Number(n): Number,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let cpu = self.look_at(tid);
        let row = self.rows().get(n).ok_or(TargetError::NonFatal)?;
        self.change(cpu, |file| registers::set(file, row.register, value))
    }
}

/// The vCPU that is thread `tid`; for a number that gdb never had from us, none that there is.
fn cpu_of(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Self::Error> {
        let text = describe::cpu(&self.debugger, cpu_of(tid));
        let len = text.len().min(buffer.len());
        buffer[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Self::Error> {
        let others = if self.locked { Action::Stay } else { Action::Run };
        let actions: Vec<_> = self.actions.iter().map(|it| it.unwrap_or(others)).collect();
        self.at_once = self.debugger.resume(&actions);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        self.actions = vec![None; self.debugger.cpus() as usize];
        self.locked = false;
        Ok(())
    }

    /// Signals are gdb's own affair: a guest has none.
    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), Self::Error> {
        self.set(tid, Action::Run);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Self::Error> {
        self.set(tid, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.add(address, 1, Point::Software)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.remove(address, 1, Point::Software)
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.add(address, 1, Point::Hardware)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.remove(address, 1, Point::Hardware)
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.add(address, len, Point::Watch(watch(kind)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.remove(address, len, Point::Watch(watch(kind)))
    }
}

fn watch(kind: WatchKind) -> Watch {
    match kind {
        WatchKind::Write => Watch::Write,
        WatchKind::Read => Watch::Read,
        WatchKind::ReadWrite => Watch::Access,
    }
}

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Self::Error> {
        out.write_raw(monitor::answer(self, &String::from_utf8_lossy(command)).as_bytes());
        Ok(())
    }
}

//! A machine under a debugger: its vCPUs stand still, are asked, changed and let go.
//!
//! Called by a debugger's front end (`control::gdb`), on a thread of its own; knows no
//! protocol. What KVM's backends cannot do is answered with a [`Refusal`] here.

mod breakpoints;
mod memory;
mod probe;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use super::poll::poll;
use super::present::Present;
use super::{DeviceEntry, Machine, core, names, platform};
use crate::kvm::{Debug, HltStep, Inject};
use crate::mem::GuestMemory;
use crate::vcpu::{Control, Counts, Hunt, News, Parking, Stop, Why};
use crate::verdict::{Death, StopLine, Verdict};

pub use crate::inspect::walk::{End, Level, Walk};
pub use crate::kvm::RunState;
pub use crate::x86::{CpuInit, CpuState, Cr0, Cr4, Efer, Fpu, Mode, Registers, Rflags, Segment};
pub use breakpoints::{How, Point, Refusal, Watch};
pub use memory::Space;
pub use probe::Limits;

use breakpoints::Breakpoints;

/// What a vCPU is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run.
    Run,
    /// Run one instruction.
    Step,
    /// Stay.
    Stay,
}

/// Why the vCPUs stand still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// They were asked to.
    Asked,
    /// The machine has not run its first instruction yet, or not again after a reset.
    Started,
    /// An instruction was stepped.
    Stepped,
    /// A breakpoint; the instruction has not run.
    Breakpoint(
        /// [`Point::Software`] or [`Point::Hardware`].
        Point,
    ),
    /// A watchpoint; the access has happened.
    Watchpoint {
        /// What is watched for.
        watch: Watch,
        /// Where.
        address: u64,
    },
    /// The guest has died. When it is let go the machine ends with this verdict.
    Died(Verdict),
    /// It did not run: the backend cannot do what was asked.
    Refused(&'static str),
}

/// What a debugger waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All vCPUs stand still.
    Stopped {
        /// Where it began.
        cpu: u32,
        /// Why.
        reason: Reason,
    },
    /// The machine has ended.
    Ended(Verdict),
}

/// A debugger's hold on a machine; [`Machine::debugger`] gives it.
pub struct Debugger {
    control: Arc<Control>,
    present: Arc<Present>,
    cpus: u32,
    is_32_bit: bool,
    limits: Limits,
    breakpoints: Breakpoints,
    /// What each vCPU was last told to debug, and to do.
    told: Vec<(Option<Debug>, Action)>,
    /// Exceptions to give back with the next resume.
    inject: Vec<Option<Inject>>,
    /// Stops beside the one that was told, until their vCPUs run again.
    beside: Vec<Beside>,
}

/// A breakpoint or a watchpoint that another vCPU came to while it was to stand still.
#[derive(Clone, Copy, Debug)]
struct Beside {
    cpu: u32,
    pc: u64,
    dr6: u64,
}

impl Machine {
    /// Makes a debugger's hold on this machine, before it runs, and finds out what its KVM can
    /// debug. With `hold` the first instruction waits until the debugger lets it go.
    pub fn debugger(&mut self, hold: bool) -> Result<Debugger, super::Error> {
        let limits = Limits::probe(&self.config.kvm)?;
        let restarts = self.config.on_reset == super::OnReset::Restart;
        self.control.set_parking(hold, restarts).map_err(|source| super::Error::Host {
            doing: "make an event for the debugger".to_owned(),
            source,
        })?;
        self.debugged = true;
        let cpus = self.config.cpus;
        let (symbols, _) = names::symbol_files(&self.config);
        let files =
            [&self.files.image[..]].into_iter().chain(symbols.iter().map(|(it, _)| &it[..]));
        let is_32_bit = core::is_32_bit(files);
        Ok(Debugger {
            control: self.control.clone(),
            present: self.share(),
            cpus,
            is_32_bit,
            limits,
            breakpoints: Breakpoints::default(),
            told: vec![(None, Action::Run); cpus as usize],
            inject: vec![None; cpus as usize],
            beside: Vec::new(),
        })
    }
}

impl Debugger {
    fn parking(&self) -> Option<&Parking> {
        self.control.parking()
    }

    fn memory(&self) -> GuestMemory {
        self.present.lock().memory.clone()
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Is the guest's first ELF file (the image, then the symbols) one of 32 bits?
    pub fn is_32_bit(&self) -> bool {
        self.is_32_bit
    }

    /// What this KVM cannot do.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The devices.
    pub fn devices(&self) -> Vec<DeviceEntry> {
        platform::entries()
    }

    /// A debugger has come: all vCPUs are to stand still, and the guest does not die unseen.
    pub fn attach(&mut self) {
        if let Some(parking) = self.parking() {
            parking.set_attached(true);
        }
        self.pause();
    }

    /// The debugger has gone: no breakpoint stays, the guest runs on. The vCPUs stand still.
    pub fn detach(&mut self) {
        let memory = self.memory();
        self.breakpoints.clear(&memory);
        self.beside.clear();
        if let Some(parking) = self.parking() {
            parking.set_attached(false);
        }
        self.resume(&vec![Action::Run; self.cpus as usize]);
    }

    /// All vCPUs are to stand still; [`Self::event`] says when they do.
    pub fn pause(&self) {
        self.control.pause();
    }

    /// Ends the machine, as a debugger's `kill` does: with the verdict of SIGKILL.
    pub fn kill(&self) {
        self.control.order(Verdict::Signal(libc::SIGKILL as u8));
    }

    /// The machine starts again from its image when it is let go, and stands still before
    /// its first instruction.
    pub fn reset(&self) {
        if let Some(parking) = self.parking() {
            parking.set_reset();
        }
    }

    /// Waits for one of `peers` to have something to read, or for an event, at most `patience`
    /// ms (-1: for ever). Which of them, and whether there may be an event.
    pub fn wait(
        &self,
        peers: [Option<&dyn AsFd>; 2],
        patience: i32,
    ) -> std::io::Result<([bool; 2], bool)> {
        let news = self.parking().map_or(-1, Parking::news_fd);
        let [one, other] = peers.map(|it| it.map_or(-1, |it| it.as_fd().as_raw_fd()));
        let fds = [one, other, news].map(|fd| (fd, libc::POLLIN));
        let [one, other, news] = poll(fds, patience)?;
        Ok(([one != 0, other != 0], news != 0))
    }

    /// What has happened, once. A stop that is only the guest's own is passed on to it, and
    /// the vCPUs run on.
    pub fn event(&mut self) -> Option<Event> {
        let stop = match self.parking()?.news()? {
            News::Ended(verdict) => return Some(Event::Ended(verdict)),
            News::Stopped(stop) => stop,
        };
        if stop.why == Why::Started {
            self.breakpoints.moved_to(&self.memory());
            self.told.fill((None, Action::Run));
            self.beside.clear();
        }
        self.keep_beside();
        let cpu = stop.cpu;
        let asked = self.parking()?.take_asked();
        if let Some(reason) = self.explain(&stop).or(asked.then_some(Reason::Asked)) {
            return Some(Event::Stopped { cpu, reason });
        }
        let actions: Vec<_> = self.told.iter().map(|(_, action)| *action).collect();
        self.resume(&actions)
    }

    /// Takes the stops that came beside the one that is told. Now is the time to say which are the
    /// guest's own exceptions: a debugger takes its breakpoints away as soon as it is told.
    fn keep_beside(&mut self) {
        for stop in self.parking().map(Parking::late).unwrap_or_default() {
            let reason = self.explain(&stop);
            if let (
                Why::Debug { pc, dr6, .. },
                Some(Reason::Breakpoint(_) | Reason::Watchpoint { .. }),
            ) = (stop.why, reason)
            {
                self.beside.push(Beside { cpu: stop.cpu, pc, dr6 });
            }
        }
    }

    /// One that has to be told now that its vCPU is to run: it would not come to it again.
    fn take_beside(&mut self, actions: &[Action]) -> Option<Event> {
        let stays = |it: &Beside| actions.get(it.cpu as usize) == Some(&Action::Stay);
        let (stay, go): (Vec<_>, Vec<_>) = self.beside.drain(..).partition(stays);
        self.beside = stay;
        let mut go = go.into_iter();
        let event = go.find_map(|it| {
            let cpu = it.cpu;
            let reason = match self.breakpoints.fired(it.dr6, it.pc)? {
                (address, Point::Watch(watch)) => Reason::Watchpoint { watch, address },
                // A vCPU that looks for its breakpoints steps first.
                (address, point) => {
                    let runs = actions.get(cpu as usize) == Some(&Action::Run);
                    let is_sought = runs && self.breakpoints.sought().contains(&address);
                    let is_there = || self.state(cpu).is_some_and(|it| it.linear_rip() == address);
                    (is_sought && is_there()).then_some(Reason::Breakpoint(point))?
                }
            };
            Some(Event::Stopped { cpu, reason })
        });
        self.beside.extend(go);
        event
    }

    /// Why a vCPU stopped; `None` when it was the guest's own exception.
    fn explain(&mut self, stop: &Stop) -> Option<Reason> {
        let (exception, pc, dr6) = match &stop.why {
            Why::Asked => return Some(Reason::Asked),
            Why::Started => return Some(Reason::Started),
            Why::Dying(verdict) => return Some(Reason::Died(verdict.clone())),
            Why::Debug { exception, pc, dr6 } => (*exception, *pc, *dr6),
        };
        const BP: u32 = 3;
        if exception == BP {
            if self.breakpoints.is_patched(pc, self.translate(stop.cpu, pc)) {
                return Some(Reason::Breakpoint(Point::Software));
            }
            return self.pass_on(stop.cpu, Inject::Breakpoint);
        }
        let stepping = self.told.get(stop.cpu as usize).is_some_and(|told| told.1 == Action::Step);
        match self.breakpoints.fired(dr6, pc) {
            Some((address, Point::Watch(watch))) => Some(Reason::Watchpoint { watch, address }),
            Some((_, point)) => Some(Reason::Breakpoint(point)),
            None if stepping => Some(Reason::Stepped),
            None => self.pass_on(stop.cpu, Inject::Debug { dr6 }),
        }
    }

    fn pass_on(&mut self, cpu: u32, exception: Inject) -> Option<Reason> {
        *self.inject.get_mut(cpu as usize)? = Some(exception);
        None
    }

    /// Lets the vCPUs go, each with its action. What comes back at once is an answer without
    /// a run: what another vCPU came to beside what was told, or a refusal.
    pub fn resume(&mut self, actions: &[Action]) -> Option<Event> {
        if let Some(event) = self.take_beside(actions) {
            return Some(event);
        }
        for cpu in 0..self.cpus {
            let mut action = actions.get(cpu as usize).copied().unwrap_or(Action::Run);
            if action == Action::Step {
                if let Some(why) = self.no_step(cpu) {
                    return Some(Event::Stopped { cpu, reason: Reason::Refused(why) });
                }
                match self.step_hlt(cpu) {
                    Some(HltStep::Halted) => {
                        return Some(Event::Stopped { cpu, reason: Reason::Stepped });
                    }
                    // The exit is the end of the step, and of the guest.
                    Some(HltStep::Exits) => action = Action::Run,
                    Some(HltStep::Waits) | None => {}
                }
            }
            self.tell(cpu, action);
        }
        if self.parking()?.is_reset_wanted() {
            self.control.stop(Verdict::died(Death::Reset, "by the debugger"));
        }
        let stay = |cpu: u32| actions.get(cpu as usize) == Some(&Action::Stay);
        self.parking()?.release(|cpu| !stay(cpu));
        None
    }

    /// Why a vCPU cannot be stepped, if it cannot.
    fn no_step(&self, cpu: u32) -> Option<&'static str> {
        let in_ring3 = || self.state(cpu).is_some_and(|state| state.ring() == 3);
        match self.limits {
            Limits { step: false, .. } => Some("this KVM cannot single-step"),
            Limits { step_in_ring3: false, .. } if in_ring3() => {
                Some("this KVM cannot single-step ring 3; set a breakpoint in ring 0")
            }
            _ => None,
        }
    }

    /// Steps a HLT, which KVM may not step; `None` where the vCPU's next instruction is another.
    fn step_hlt(&self, cpu: u32) -> Option<HltStep> {
        const HLT: u8 = 0xF4;
        let state = self.state(cpu).filter(|state| state.ring() == 0)?;
        let mut next = [0];
        let read = self.read(cpu, Space::Linear, state.linear_rip(), &mut next);
        if read == 0 || next[0] != HLT || self.inject.get(cpu as usize)?.is_some() {
            return None;
        }
        self.answered(self.parking()?.ask(cpu, |vcpu, _| vcpu.step_hlt())?)
    }

    /// Tells a vCPU what KVM is to debug, if that is not what it does already.
    fn tell(&mut self, cpu: u32, action: Action) {
        let inject = self.inject.get_mut(cpu as usize).and_then(Option::take);
        let step = action == Action::Step;
        let places = self.breakpoints.sought();
        let hunts = !step && !places.is_empty();
        let debug = Debug {
            single_step: step || hunts,
            block_interrupts: step,
            inject,
            software_breakpoints: self.breakpoints.has_patches(),
            hardware: self.breakpoints.registers(),
        };
        if let Some(parking) = self.parking() {
            let step = Debug { inject: None, ..debug };
            parking.set_hunt(cpu, hunts.then_some(Hunt { places, step }));
        }
        let Some((told, _)) = self.told.get(cpu as usize) else { return };
        // A single step is set each time: entering a handler has switched it off.
        if *told != Some(debug) || debug.single_step {
            let set = move |vcpu: &mut crate::kvm::Vcpu, _: &Counts| vcpu.set_debug(&debug);
            if let Some(Err(e)) = self.parking().and_then(|parking| parking.ask(cpu, set)) {
                log::warn!("debugger: {}", super::chain(&e));
            }
        }
        // What is injected is injected once.
        let told = inject.is_none().then_some(debug);
        self.told[cpu as usize] = (told, action);
    }

    /// The registers of a vCPU that stands still.
    pub fn registers(&self, cpu: u32) -> Option<Registers> {
        self.answered(self.parking()?.ask(cpu, |vcpu, _| vcpu.registers())?)
    }

    /// Changes them.
    pub fn set_registers(&self, cpu: u32, new: Registers) -> Option<()> {
        self.answered(self.parking()?.ask(cpu, move |vcpu, _| vcpu.set_registers(&new))?)
    }

    /// The same without the floating-point state.
    pub fn state(&self, cpu: u32) -> Option<CpuState> {
        self.answered(self.parking()?.ask(cpu, |vcpu, _| vcpu.state())?)
    }

    /// What it was doing.
    pub fn run_state(&self, cpu: u32) -> Option<RunState> {
        self.answered(self.parking()?.ask(cpu, |vcpu, _| vcpu.run_state())?)
    }

    /// What the vCPUs have counted since the machine started, those that stand still.
    pub fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for cpu in 0..self.cpus {
            let counts = self.parking().and_then(|it| it.ask(cpu, |_, counts| counts.clone()));
            counts.iter().for_each(|counts| total.add(counts));
        }
        total
    }

    fn answered<T>(&self, answer: Result<T, crate::kvm::Error>) -> Option<T> {
        answer.inspect_err(|e| log::warn!("debugger: {}", super::chain(e))).ok()
    }
}

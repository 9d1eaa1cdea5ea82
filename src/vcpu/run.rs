//! The run loop: one `match`, one line an exit.
//!
//! The exit path allocates nothing, reads no clock, takes no lock that another vCPU takes
//! for another device, logs nothing and issues no ioctl but KVM_RUN.

use std::sync::Arc;

use super::control::Control;
use super::counts::{Counts, UnclaimedKind};
use super::halt::{HaltWatch, Ticks};
use super::kick::kick_self;
use super::park::{Standing, Why};
use super::recorder::{Observer, Recorder};
use super::strict::{Still, Strict, Violation};
use crate::bus::BusView;
use crate::kvm::{Exit, INVALID_HYPERCALL_CODE, InternalError, RunState, Vcpu};
use crate::verdict::{Death, Refusal, StopLine, Verdict};

/// Who answers the hypercalls that KVM passes on; `None`: nobody knows this one.
pub trait HypercallDevice: Send + Sync {
    /// Answers one.
    fn call(&self, number: u64, args: &[u64; 6]) -> Option<u64>;
}

/// What a hypercall that nobody knows returns (KVM_ENOSYS, Linux include/uapi/linux/kvm_para.h).
const KVM_ENOSYS: u64 = -1000_i64 as u64;

/// One vCPU with its views of the machine.
pub struct RunLoop {
    /// The vCPU.
    pub vcpu: Vcpu,
    /// Port I/O.
    pub pio: BusView,
    /// Memory-mapped I/O.
    pub mmio: BusView,
    /// Hypercalls.
    pub hypercalls: Arc<dyn HypercallDevice>,
    /// Requests.
    pub control: Arc<Control>,
    /// Where HLT stays in the kernel.
    pub halt_watch: Option<Arc<HaltWatch>>,
    /// Its last exits.
    pub recorder: Recorder,
    /// Who watches all of them.
    pub observer: Option<Box<dyn Observer>>,
    /// How often the halt watch and the observer look.
    pub ticks: Ticks,
    /// What ends a guest that could go on.
    pub strict: Arc<Strict>,
    /// How strict mode ended the guest.
    pub violation: Option<Violation>,
    /// How long it has stood at one instruction, where memory is guarded.
    pub still: Still,
}

/// How the loop was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The machine is to end.
    TheEnd,
    /// Somebody has come to watch.
    Watched,
}

impl RunLoop {
    /// Forgets what it saw of the guest since `recorder` was what it is given here.
    pub fn put_back(&mut self, recorder: &Recorder) {
        self.recorder.clone_from(recorder);
        self.violation = None;
        self.still = Still::default();
        if let Some(watch) = &self.halt_watch {
            watch.reset();
        }
    }

    /// Runs the guest until the machine is told to end; gives back what was counted. When it
    /// returns, no instruction is half done: KVM_RUN was entered with `immediate_exit` set.
    pub(super) fn run(&mut self) -> Counts {
        let mut counts = Counts::new();
        // Somebody who is asked for meanwhile watches from then on.
        while match self.observer {
            None => self.run_until::<false>(&mut counts),
            Some(_) => self.run_until::<true>(&mut counts),
        } == Until::Watched
        {}
        let control = self.control.clone();
        control.show_death(&mut self.standing(&counts));
        if let Some(observer) = &mut self.observer {
            observer.publish();
        }
        counts
    }

    /// The loop itself, compiled once for each: only where it is `WATCHED` does it look at the
    /// observer.
    fn run_until<const WATCHED: bool>(&mut self, counts: &mut Counts) -> Until {
        let mut until = None;
        while until.is_none() {
            self.vcpu.enter();
            self.recorder.note(self.vcpu.kept());
            if WATCHED && let Some(observer) = &mut self.observer {
                self.recorder.stamp(observer.begin());
            }
            let log = &mut self.recorder;
            let exit = self.vcpu.last_exit();
            counts.exit(exit.kind());
            let unclaimed = match exit {
                Exit::PioIn { port, size, data } => pio_in(&mut self.pio, port, size, data, log),
                Exit::PioOut { port, size, data } => pio_out(&mut self.pio, port, size, data),
                Exit::MmioRead { address, data } => mmio_read(&mut self.mmio, address, data, log),
                Exit::MmioWrite { address, data } => mmio_write(&mut self.mmio, address, data),
                Exit::ReadMsr { index, error } => msr(UnclaimedKind::MsrRead, index, error),
                Exit::WriteMsr { index, error, .. } => msr(UnclaimedKind::MsrWrite, index, error),
                Exit::Hypercall { number, args, result } => {
                    hypercall(&*self.hypercalls, number, &args, result)
                }
                Exit::Hyperv { result } => hyperv(result),
                Exit::SetTpr => None,
                Exit::Interrupted => {
                    until = self.interrupted::<WATCHED>(counts);
                    None
                }
                Exit::Debug { exception, pc, dr6 } if self.control.parking().is_some() => {
                    self.debug_exit(Why::Debug { exception, pc, dr6 });
                    None
                }
                fatal => {
                    let fatal = Fatal::from(fatal);
                    let verdict = self.fatal(&fatal);
                    self.control.stop(verdict);
                    until = Some(Until::TheEnd);
                    None
                }
            };
            if WATCHED && let Some(observer) = &mut self.observer {
                observer.end(&self.recorder.last());
            }
            if let Some((kind, address)) = unclaimed
                && !self.is_patch(kind)
            {
                counts.unclaimed(kind, address, self.vcpu.rip());
                self.enforce(kind);
            }
        }
        until.unwrap_or(Until::TheEnd)
    }

    fn standing<'a>(&'a mut self, counts: &'a Counts) -> Standing<'a> {
        Standing { vcpu: &mut self.vcpu, parked: false, counts, observer: &mut self.observer }
    }

    /// Ends the guest if nobody's claiming the last exit broke a rule.
    #[cold]
    fn enforce(&mut self, kind: UnclaimedKind) {
        let Some(mut violation) = self.strict.check(kind, &self.recorder.last()) else { return };
        if matches!(kind, UnclaimedKind::PioWrite | UnclaimedKind::MmioWrite) {
            // KVM finishes some writes before it comes back, and some when it is entered
            // again: one that moves RIP only now was still the current instruction.
            kick_self();
            let (rip, _) = self.vcpu.run();
            violation.finished = rip == violation.record.rip;
        }
        let verdict = self.broken(violation);
        self.control.stop(verdict);
    }

    /// The verdict on a broken rule, which it remembers.
    fn broken(&mut self, violation: Violation) -> Verdict {
        let verdict = Verdict::died(Death::Strict, violation.to_string());
        self.violation = Some(violation);
        verdict
    }

    /// Was the last exit a write of KVM's own, which is done now?
    #[cold]
    fn is_patch(&mut self, kind: UnclaimedKind) -> bool {
        let Some(guards) = &self.strict.guards else { return false };
        kind == UnclaimedKind::MmioWrite && guards.patches(&self.recorder.last(), &self.vcpu)
    }

    /// The rule that the instruction at RIP breaks by an access that KVM cannot do.
    fn blocked(&mut self) -> Option<Violation> {
        let blocked = self.strict.guards.as_ref()?.blocked(&self.vcpu)?;
        self.strict.check_blocked(blocked, self.vcpu.rip())
    }

    /// A breakpoint, or one more step on the way to it.
    #[cold]
    fn debug_exit(&mut self, why: Why) {
        let Some(next) = self.control.debug_exit(self.vcpu.id(), why) else { return };
        if let Err(e) = self.vcpu.set_debug(&next) {
            let message = format!("the host refused the debugger a single step: {e}");
            self.control.stop(Verdict::Refused { refusal: Refusal::Host, message });
        }
    }

    /// After a kick: the flag is cleared first, the requests are read after it.
    #[cold]
    fn interrupted<const WATCHED: bool>(&mut self, counts: &Counts) -> Option<Until> {
        self.vcpu.clear_immediate_exit();
        self.recorder.merge_interrupted();
        if self.control.should_leave() {
            return Some(Until::TheEnd);
        }
        let control = self.control.clone();
        control.park(&mut self.standing(counts));
        if self.stands_for_ever() {
            return Some(Until::TheEnd);
        }
        match &mut self.observer {
            Some(_) if !WATCHED => return Some(Until::Watched),
            Some(observer) => {
                // The exit did not take the time that the vCPU stood still.
                observer.begin();
                observer.tick(&mut self.vcpu);
                self.ticks.next_sample();
            }
            None => {}
        }
        None
    }

    /// Has it to tick, to be watched?
    pub(super) fn is_watched(&self) -> bool {
        self.halt_watch.is_some() || self.strict.guards.is_some()
    }

    /// At a tick of the watches: is the machine to end?
    fn stands_for_ever(&mut self) -> bool {
        if !self.is_watched() || !self.ticks.is_due() {
            return false;
        }
        if self.halts_for_ever() {
            let detail = format!("at {:#x} (hlt with interrupts off)", self.hlt());
            self.control.stop(Verdict::died(Death::Halted, detail));
        }
        let rip = self.vcpu.rip();
        if self.strict.guards.is_some()
            && self.still.tick(rip)
            && let Some(violation) = self.blocked()
        {
            let verdict = self.broken(violation);
            self.control.stop(verdict);
        }
        self.control.should_stop()
    }

    /// Do all vCPUs?
    fn halts_for_ever(&mut self) -> bool {
        let Some(watch) = &self.halt_watch else { return false };
        let halted = matches!(self.vcpu.run_state(), Ok(RunState::HaltedForEver));
        watch.tick(self.vcpu.id(), halted)
    }

    /// The verdict on an exit that the guest does not come back from.
    #[cold]
    fn fatal(&mut self, exit: &Fatal) -> Verdict {
        if matches!(exit, Fatal::Internal(_))
            && !self.strict.forbids_fetch(self.vcpu.rip())
            && let Some(violation) = self.blocked()
        {
            return self.broken(violation);
        }
        let place = self.place();
        match exit {
            Fatal::Hlt if self.vcpu.interrupts_enabled() => Verdict::died(
                Death::Halted,
                format!(
                    "at {:#x} (hlt with interrupts on, but there is no interrupt controller: see --irqchip)",
                    self.hlt()
                ),
            ),
            Fatal::Hlt => {
                let detail = format!("at {:#x} (hlt with interrupts off)", self.hlt());
                Verdict::died(Death::Halted, detail)
            }
            Fatal::Shutdown => Verdict::died(Death::TripleFault, place),
            Fatal::FailEntry(reason) => Verdict::died(
                Death::InvalidEntry,
                format!("{place} (hardware entry failure reason {reason:#x})"),
            ),
            Fatal::InvalidState => {
                Verdict::died(Death::InvalidEntry, format!("{place} (KVM refused the registers)"))
            }
            Fatal::Internal(_) if self.strict.forbids_fetch(self.vcpu.rip()) => Verdict::died(
                Death::Strict,
                format!("{place}: page zero was jumped to (--strict=null)"),
            ),
            Fatal::Internal(error) => Verdict::died(Death::Unrunnable, unrunnable(&place, error)),
            Fatal::NotPermitted => Verdict::died(
                Death::Unrunnable,
                format!("{place} (KVM_RUN gave EPERM: a hypercall outside ring 0?)"),
            ),
            Fatal::Failed(errno) => Verdict::Refused {
                refusal: Refusal::Host,
                message: format!(
                    "the host refused KVM_RUN {place}: {}",
                    std::io::Error::from_raw_os_error(*errno)
                ),
            },
            Fatal::Other(what) => Verdict::Refused {
                refusal: Refusal::Host,
                message: format!("KVM came back {place} for {what}, which nothing here asked for"),
            },
        }
    }

    /// Where the HLT is that RIP stands behind, unless it has run nothing.
    fn hlt(&mut self) -> u64 {
        let behind = !self.vcpu.waits_for_start();
        self.vcpu.rip().wrapping_sub(behind.into())
    }

    /// Where the guest was, in words.
    fn place(&mut self) -> String {
        if self.vcpu.is_reinitialised() {
            let (last, _) = self.vcpu.previous_registers();
            let last = last.rip;
            return format!(
                "after {last:#x} (this KVM re-initialises a processor that shuts down; that was its last exit)"
            );
        }
        format!("at {:#x}", self.vcpu.rip())
    }
}

fn unrunnable(place: &str, error: &InternalError) -> String {
    let mut detail = format!("{place} (KVM internal error: {}", error.words());
    if !error.instruction_bytes().is_empty() {
        detail.push_str("; bytes");
        for byte in error.instruction_bytes() {
            detail.push_str(&format!(" {byte:02x}"));
        }
    }
    detail.push(')');
    detail
}

/// An exit that ends the machine, free of the borrow of `kvm_run`.
enum Fatal {
    Hlt,
    Shutdown,
    FailEntry(u64),
    InvalidState,
    Internal(InternalError),
    NotPermitted,
    Failed(i32),
    Other(String),
}

impl From<Exit<'_>> for Fatal {
    fn from(exit: Exit<'_>) -> Self {
        match exit {
            Exit::Hlt => Self::Hlt,
            Exit::Shutdown => Self::Shutdown,
            Exit::FailEntry { reason } => Self::FailEntry(reason),
            Exit::InternalError(error) => Self::Internal(error),
            Exit::Failed { errno: libc::EINVAL } => Self::InvalidState,
            Exit::Failed { errno: libc::EPERM } => Self::NotPermitted,
            Exit::Failed { errno } => Self::Failed(errno),
            Exit::SystemEvent { kind } => Self::Other(format!("a system event of type {kind}")),
            other => Self::Other(format!("{other:?}")),
        }
    }
}

type Unclaimed = Option<(UnclaimedKind, u64)>;

#[inline]
fn pio_in(
    bus: &mut BusView,
    port: u16,
    size: usize,
    data: &mut [u8],
    log: &mut Recorder,
) -> Unclaimed {
    let mut unclaimed = None;
    for element in data.chunks_exact_mut(size) {
        if !bus.read(port.into(), element) {
            element.fill(0xFF);
            unclaimed = Some((UnclaimedKind::PioRead, port.into()));
        }
    }
    log.answer(data);
    unclaimed
}

#[inline]
fn pio_out(bus: &mut BusView, port: u16, size: usize, data: &[u8]) -> Unclaimed {
    let mut unclaimed = None;
    for element in data.chunks_exact(size) {
        if !bus.write(port.into(), element) {
            unclaimed = Some((UnclaimedKind::PioWrite, port.into()));
        }
    }
    unclaimed
}

#[inline]
fn mmio_read(bus: &mut BusView, address: u64, data: &mut [u8], log: &mut Recorder) -> Unclaimed {
    let claimed = bus.read(address, data);
    if !claimed {
        data.fill(0xFF);
    }
    log.answer(data);
    if claimed { None } else { Some((UnclaimedKind::MmioRead, address)) }
}

#[inline]
fn mmio_write(bus: &mut BusView, address: u64, data: &[u8]) -> Unclaimed {
    if bus.write(address, data) { None } else { Some((UnclaimedKind::MmioWrite, address)) }
}

/// An unknown MSR is the guest's mistake: #GP.
fn msr(kind: UnclaimedKind, index: u32, error: &mut u8) -> Unclaimed {
    *error = 1;
    Some((kind, index.into()))
}

/// KVM does the interface's work itself, but for hypercalls that nobody here offers.
fn hyperv(result: Option<&mut u64>) -> Unclaimed {
    if let Some(result) = result {
        *result = INVALID_HYPERCALL_CODE;
    }
    None
}

fn hypercall(
    device: &dyn HypercallDevice,
    number: u64,
    args: &[u64; 6],
    result: &mut u64,
) -> Unclaimed {
    let answer = device.call(number, args);
    *result = answer.unwrap_or(KVM_ENOSYS);
    if answer.is_some() { None } else { Some((UnclaimedKind::Hypercall, number)) }
}

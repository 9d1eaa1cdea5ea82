//! The run loop: one `match`, one line an exit.
//!
//! The exit path allocates nothing, reads no clock, takes no lock that another vCPU takes
//! for another device, logs nothing and issues no ioctl but KVM_RUN.

use std::sync::Arc;

use super::control::Control;
use super::counts::{Counts, UnclaimedKind};
use super::halt::{HaltWatch, Ticks};
use super::kick::kick_self;
use super::park::Why;
use super::recorder::{Observer, Recorder};
use super::strict::{Strict, Violation};
use crate::bus::BusView;
use crate::kvm::{Exit, InternalError, RunState, Vcpu};
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
}

impl RunLoop {
    /// Runs the guest until the machine is told to end; gives back what was counted. When it
    /// returns, no instruction is half done: KVM_RUN was entered with `immediate_exit` set.
    pub(super) fn run(&mut self) -> Counts {
        let Some(mut observer) = self.observer.take() else { return self.run_watched(&mut ()) };
        let counts = self.run_watched(&mut *observer);
        observer.finish();
        self.observer = Some(observer);
        counts
    }

    /// The loop itself, compiled once without an observer and once with any.
    fn run_watched<O: Observer + ?Sized>(&mut self, observer: &mut O) -> Counts {
        let mut counts = Counts::new();
        let id = self.vcpu.id();
        let mut goes_on = true;
        while goes_on {
            let (rip, exit) = self.vcpu.run();
            counts.exit(exit.kind());
            self.recorder.note(rip, observer.begin(), &exit);
            let log = &mut self.recorder;
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
                Exit::Interrupted => {
                    goes_on = !self.interrupted(&counts);
                    if goes_on {
                        observer.tick(&self.vcpu);
                        self.ticks.next_sample();
                    }
                    None
                }
                Exit::Debug { exception, pc, dr6 }
                    if self.control.debug_exit(id, Why::Debug { exception, pc, dr6 }) =>
                {
                    None
                }
                fatal => {
                    let fatal = Fatal::from(fatal);
                    let verdict = self.fatal(&fatal);
                    self.control.stop(verdict);
                    goes_on = false;
                    None
                }
            };
            observer.end(self.recorder.last());
            if let Some((kind, address)) = unclaimed {
                counts.unclaimed(kind, address, rip);
                self.enforce(kind);
            }
        }
        self.control.show_death(&mut self.vcpu, &counts);
        counts
    }

    /// Ends the guest if nobody's claiming the last exit broke a rule.
    #[cold]
    fn enforce(&mut self, kind: UnclaimedKind) {
        let Some(mut violation) = self.strict.check(kind, self.recorder.last()) else { return };
        if matches!(kind, UnclaimedKind::PioWrite | UnclaimedKind::MmioWrite) {
            // KVM finishes some writes before it comes back, and some when it is entered
            // again: one that moves RIP only now was still the current instruction.
            kick_self();
            let (rip, _) = self.vcpu.run();
            violation.finished = rip == violation.record.rip;
        }
        self.control.stop(Verdict::died(Death::Strict, violation.to_string()));
        self.violation = Some(violation);
    }

    /// After a kick: the flag is cleared first, the requests are read after it. True to end.
    #[cold]
    fn interrupted(&mut self, counts: &Counts) -> bool {
        self.vcpu.clear_immediate_exit();
        self.recorder.merge_interrupted();
        if self.control.should_stop() {
            return true;
        }
        self.control.park(&mut self.vcpu, counts);
        let Some(watch) = &self.halt_watch else { return false };
        if !self.ticks.is_due() {
            return false;
        }
        let halted = matches!(self.vcpu.run_state(), Ok(RunState::HaltedForEver));
        if watch.tick(self.vcpu.id(), halted) {
            let detail = format!("at {:#x} (hlt with interrupts off)", self.vcpu.rip());
            self.control.stop(Verdict::died(Death::Halted, detail));
        }
        self.control.should_stop()
    }

    /// The verdict on an exit that the guest does not come back from.
    #[cold]
    fn fatal(&mut self, exit: &Fatal) -> Verdict {
        let place = self.place();
        match exit {
            Fatal::Hlt if self.vcpu.interrupts_enabled() => Verdict::died(
                Death::Halted,
                format!(
                    "{place} (hlt with interrupts on, but there is no interrupt controller: see --irqchip)"
                ),
            ),
            Fatal::Hlt => {
                Verdict::died(Death::Halted, format!("{place} (hlt with interrupts off)"))
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

    /// Where the guest was, in words.
    fn place(&mut self) -> String {
        if self.vcpu.is_reinitialised() {
            let last = self.vcpu.previous_rip();
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

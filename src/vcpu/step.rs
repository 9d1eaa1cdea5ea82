//! A guest run a second time: up to a number of exits, then instruction by instruction to its
//! end. What it costs, an exit an instruction, is paid for one guest that died already.

use std::io;
use std::sync::Arc;

use super::control::Control;
use super::counts::Counts;
use super::kick::kick_self;
use super::recorder::{Observer, Record};
use super::run::RunLoop;
use super::thread::{drive, run_all};
use crate::kvm::{self, Debug, Exit, Vcpu};
use crate::verdict::{StopLine, Success, Verdict};

/// Who goes along with a stepped guest.
pub trait Companion {
    /// The guest is about to run an instruction. Where a single step would not
    /// come back (the processor switches single steps off when it enters a handler) an INT3
    /// or [`OUT`] where the guest goes on does.
    ///
    /// # Errors
    /// KVM did not give the state.
    fn step(&mut self, vcpu: &Vcpu) -> Result<(), kvm::Error>;
}

/// `out %al, $0xED`, to a port that no device claims. It exits in ring 0 wherever there is
/// AMD-V; INT3 and the debug registers do not in QEMU's emulation of it.
pub const OUT: [u8; 2] = [0xE6, PORT as u8];
const PORT: u16 = 0xED;

/// How stepping ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// The guest died.
    Died,
    /// The steps were used up.
    OutOfSteps,
    /// The machine was told to end: time is up, or a signal came.
    Stopped(Verdict),
    /// The guest did something that it had not done the first time.
    Elsewhere(Record),
}

/// Lets the only vCPU of a machine run until it has had `exits` exits that are no
/// interruptions. Gives the verdict where it came to one before.
pub fn run_to_exit(
    it: &mut RunLoop,
    control: &Arc<Control>,
    exits: u64,
) -> (Counts, Option<Verdict>) {
    if exits == 0 {
        return (Counts::default(), None);
    }
    it.observer = Some(Box::new(Milestone { control: control.clone(), left: exits }));
    let counts = run_all(std::slice::from_mut(it), control);
    it.observer = None;
    let verdict = control.verdict().filter(|verdict| *verdict != MILESTONE);
    control.rearm();
    (counts, verdict)
}

/// What ends the first part; no guest of one ends so, because it is not asked.
const MILESTONE: Verdict = Verdict::Success(Success::Halted);

/// Ends a machine after some exits.
struct Milestone {
    control: Arc<Control>,
    left: u64,
}

impl Observer for Milestone {
    fn begin(&mut self) -> u64 {
        0
    }

    fn end(&mut self, record: &Record) {
        if !record.kind.is_guests_own() || self.left == 0 {
            return;
        }
        self.left -= 1;
        if self.left == 0 {
            self.control.stop(MILESTONE);
        }
    }

    fn tick(&mut self, _: &mut Vcpu) {}

    fn publish(&mut self) {}
}

/// Steps the vCPU until the guest dies, at most `steps` instructions.
pub fn step_to_end(
    it: &mut RunLoop,
    steps: u64,
    companion: &mut dyn Companion,
) -> io::Result<Result<Stepped, kvm::Error>> {
    let control = it.control.clone();
    let stepped = drive(it, |it| step(it, &control, steps, companion))?;
    Ok(stepped.unwrap_or_else(|| Ok(Stepped::Stopped(ended(&control)))))
}

fn step(
    it: &mut RunLoop,
    control: &Control,
    steps: u64,
    companion: &mut dyn Companion,
) -> Result<Stepped, kvm::Error> {
    // The entry state of a guest without exits comes to KVM with a KVM_RUN, and a single step
    // begins where RIP is then.
    kick_self();
    let (rip, exit) = it.vcpu.run();
    if exit != Exit::Interrupted {
        return Ok(Stepped::Elsewhere(Record::new(rip, 0, &exit)));
    }
    it.vcpu.clear_immediate_exit();
    let mut done = 0;
    while done < steps {
        companion.step(&it.vcpu)?;
        // Each time: entering a handler has switched it off.
        it.vcpu.set_debug(&STEP)?;
        if let Some(end) = one(it, control)? {
            return Ok(end);
        }
        done += 1;
    }
    Ok(Stepped::OutOfSteps)
}

/// One step, or further to a breakpoint.
fn one(it: &mut RunLoop, control: &Control) -> Result<Option<Stepped>, kvm::Error> {
    loop {
        match it.vcpu.run().1 {
            Exit::Debug { .. } => return Ok(None),
            Exit::PioOut { port: PORT, .. } => {
                // KVM finishes the instruction, which never was the guest's.
                kick_self();
                let (behind, _) = it.vcpu.run();
                it.vcpu.clear_immediate_exit();
                it.vcpu.set_rip(behind.wrapping_sub(OUT.len() as u64))?;
                return Ok(None);
            }
            Exit::Interrupted => it.vcpu.clear_immediate_exit(),
            Exit::Shutdown | Exit::InternalError(_) | Exit::FailEntry { .. } => {
                return Ok(Some(Stepped::Died));
            }
            _ => return Ok(Some(Stepped::Elsewhere(Record::of(&it.vcpu.kept(), 0)))),
        }
        if control.should_stop() {
            return Ok(Some(Stepped::Stopped(ended(control))));
        }
    }
}

fn ended(control: &Control) -> Verdict {
    control.verdict().unwrap_or(MILESTONE)
}

/// Each instruction, and INT3.
const STEP: Debug = Debug {
    single_step: true,
    software_breakpoints: true,
    block_interrupts: false,
    inject: None,
    hardware: [None; 4],
};

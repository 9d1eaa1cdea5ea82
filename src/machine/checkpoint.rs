//! Boot once, test many: a machine's checkpoint in memory, and the way back to it.
//!
//! Called by whoever runs many tests in one machine. A reset makes no new KVM objects: it puts
//! back the pages that were written to, and the registers of vCPUs, interrupt controllers and
//! devices. What the host keeps of a run (console, counts, verdict) goes back with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Error, Machine};
use crate::devices::ReadyLine;
use crate::devices::console::Position;
use crate::kvm::{Kvm, Shadows};
use crate::mem::{Bytes, Copy};
use crate::state;
use crate::vcpu::{Control, Counts, Recorder};
use crate::verdict::{Success, Verdict};

/// How far [`Machine::run_to_ready`] came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The guest said that it is ready.
    Ready,
    /// It ended before.
    End(Verdict),
}

/// A copy of a whole machine, for [`Machine::reset`].
pub struct Checkpoint {
    /// Told apart from those of other machines, and from this one's earlier ones.
    number: u64,
    memory: Copy,
    chips: state::Chips,
    cpus: Vec<state::Cpu>,
    /// In the order of the platform's table.
    devices: Vec<Vec<u8>>,
    host: HostSide,
}

/// What the host keeps of a run.
struct HostSide {
    console: Position,
    counts: Counts,
    restarts: u64,
    recorders: Vec<Recorder>,
}

impl Checkpoint {
    /// Bytes of guest memory that it holds: of those pages that were not zero.
    pub fn memory_bytes(&self) -> usize {
        self.memory.len()
    }
}

impl Checkpoint {
    /// Which parts of two checkpoints of a machine are not the same, in words. Left out is what
    /// goes on by itself: the TSC, timers that count, KVM's clock.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let pages = self.memory.differences(&other.memory);
        found.extend(pages.iter().map(|page| format!("page {:#x}", page.0)));
        for (id, (one, other)) in self.cpus.iter().zip(&other.cpus).enumerate() {
            found.extend(one.differences(other).iter().map(|part| format!("vcpu{id} {part}")));
        }
        if !self.chips.is_same(&other.chips) {
            found.push("interrupt controllers".to_owned());
        }
        for (number, (one, other)) in self.devices.iter().zip(&other.devices).enumerate() {
            if one != other {
                found.push(format!("device {number}"));
            }
        }
        found
    }
}

/// The newest checkpoint of a machine: what was written to since.
pub(super) struct Tracking {
    number: u64,
    /// Where KVM keeps shadows of the guest's page tables.
    shadows: Option<Shadows>,
}

/// Tells the vCPUs that the guest is ready.
pub(super) struct ReadyTo(pub(super) Arc<Control>);

impl ReadyLine for ReadyTo {
    fn ready(&self) {
        self.0.guest_is_ready();
    }
}

/// Checkpoints of this process.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Machine {
    /// Runs the guest until it says READY by its mailbox (see [`crate::devices::mailbox`]), or
    /// ends without. The machine then stands behind that instruction, and [`Self::run`] goes on.
    pub fn run_to_ready(&mut self) -> Reached {
        self.control.await_ready(true);
        let reached = self.advance();
        self.control.await_ready(false);
        reached
    }

    /// The names of the tests that the guest has announced, in its order.
    pub fn announced(&self) -> Vec<String> {
        self.incarnation.mailbox.announced()
    }

    /// Why not all tests that the guest has announced are among [`Self::announced`], or some
    /// cannot be told apart there.
    pub fn announce_fault(&self) -> Option<&'static str> {
        self.incarnation.mailbox.fault()
    }

    /// Has the guest announced a test behind its READY, since then or since it was put back? Such a
    /// name is not taken.
    pub fn announced_late(&self) -> bool {
        self.incarnation.mailbox.is_late()
    }

    /// Which test the guest finds in its mailbox from now on; an empty name for none.
    pub fn set_test(&mut self, name: &str) {
        self.test = name.as_bytes().to_vec();
        self.incarnation.mailbox.set_test(&self.test);
    }

    /// Sets the time limit, from now on; `None` for none.
    pub fn set_timeout(&mut self, limit: Option<Duration>) {
        self.control.set_limit(limit);
    }

    /// Console output since the last checkpoint or reset; [`Self::serial`] has all of it.
    pub fn serial_since_checkpoint(&self) -> Vec<u8> {
        match &self.since {
            Some(position) => self.console.captured_since(position),
            None => self.serial(),
        }
    }

    /// Copies the whole machine as it stands: memory (as much as is not zero), vCPUs, interrupt
    /// controllers, devices. From now on KVM logs which pages the guest writes to. The newest
    /// checkpoint of a machine is the one that it can be put back to.
    ///
    /// # Errors
    /// KVM refused something; the machine has ended, or a debugger holds it.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        if self.debugged {
            return Err(Error::Checkpoint { reason: "a debugger holds the machine" });
        }
        if self.ended.is_some() {
            return Err(Error::Checkpoint { reason: "the machine has ended" });
        }
        let msrs = Kvm::open(&self.config.kvm)?.msr_numbers()?;
        let it = &mut self.incarnation;
        let cpus = it.loops.iter_mut().map(|it| it.vcpu.save(&msrs)).collect::<Result<_, _>>()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if it.log.is_none() {
            it.log = Some(it.vm.log_dirty(&it.guarded)?);
        }
        let shadows = Shadows::watch(it.loops.iter().map(|it| &it.vcpu));
        if let Some(log) = &mut it.log {
            // One that was on before still has what is about to be copied.
            log.take(&it.vm, |_| ())?;
        }
        let refused = |source| Error::Host { doing: "copy the guest's memory".to_owned(), source };
        let memory = Copy::take(&it.memory).map_err(refused)?;
        it.tracking = Some(Tracking { number, shadows });
        let console = self.console.position();
        self.since = Some(console.clone());
        Ok(Checkpoint {
            number,
            memory,
            chips: it.vm.save()?,
            cpus,
            devices: it.devices.iter().map(|(_, device)| device.save()).collect(),
            host: HostSide {
                console,
                counts: self.counts.clone(),
                restarts: self.restarts,
                recorders: it.loops.iter().map(|it| it.recorder.clone()).collect(),
            },
        })
    }

    /// Puts the machine back, whatever became of it: everything that the guest sees, and what
    /// was counted, written and judged since. The time limit begins anew with the length that it
    /// has, and the name of a test is forgotten. Not put back are the host's time, the TSC where
    /// KVM does not let it be set, and serial input: what the port held at the checkpoint it holds
    /// again, but what the host sent since is gone, and what it would still have sent ends with the
    /// first run that looked for input.
    ///
    /// # Errors
    /// It is not this machine's newest checkpoint, or the machine has started again from its
    /// image since; KVM refused something, and the machine cannot be used any more.
    pub fn reset(&mut self, to: &Checkpoint) -> Result<(), Error> {
        // Who ended the machine by its debug exit was running then.
        let alone = self.incarnation.loops.len() == 1;
        let ran = self.ended.as_ref().is_some_and(|(verdict, _)| is_debug_exit(verdict));
        let it = &mut self.incarnation;
        let tracking = it.tracking.as_mut().filter(|tracking| tracking.number == to.number);
        let (Some(tracking), Some(log)) = (tracking, &mut it.log) else {
            let reason = "it is not the machine's newest, or the machine has started again since";
            return Err(Error::Checkpoint { reason });
        };
        log.take(&it.vm, |at| {
            let page = to.memory.page(at).unwrap_or_default();
            // The log and the copy are of the same memory, which has this page.
            let _ = it.memory.write_slice(page, at);
        })?;
        if let Some(shadows) = &mut tracking.shadows {
            shadows.drop_stale(&it.vm)?;
        }
        // From the outside in: a line that a device drives reaches the chips, and a chip's
        // interrupt the vCPUs, before these take what they had.
        for ((_, device), saved) in it.devices.iter().zip(&to.devices) {
            device.restore(saved)?;
        }
        it.vm.restore(&to.chips)?;
        for (it, saved) in it.loops.iter_mut().zip(&to.cpus) {
            it.vcpu.restore(saved, alone, ran)?;
        }
        self.reset_host_side(&to.host);
        Ok(())
    }

    fn reset_host_side(&mut self, to: &HostSide) {
        let HostSide { console, counts, restarts, recorders } = to;
        self.console.rewind(console);
        self.since = Some(console.clone());
        self.counts.clone_from(counts);
        self.restarts = *restarts;
        for (it, recorder) in self.incarnation.loops.iter_mut().zip(recorders) {
            it.put_back(recorder);
        }
        self.control.renew();
        self.control.set_limit(self.control.limit());
        self.pump.reopen();
        self.set_test("");
        self.began = Instant::now();
        (self.ended, self.evidence, self.autopsy) = (None, None, None);
        if let Some(parking) = self.control.parking() {
            parking.reopen();
        }
        self.share_again();
    }
}

fn is_debug_exit(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Success(Success::DebugExit) | Verdict::Failed { .. })
}

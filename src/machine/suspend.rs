//! Suspended to RAM, the state S3 (ACPI 6.5, 16.1.3): the machine sleeps until its clock's alarm
//! and wakes with its memory and its clock, everything else being as after a reset.
//!
//! Called by the machine's loop; no vCPU runs.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::build::incarnate;
use super::platform::{self, CMOS, POWER_CONTROL};
use super::{Error, Machine, nothing_ran};
use crate::boot::{Loaded, acpi};
use crate::bus::Device;
use crate::devices::{Cmos, PowerControl};
use crate::state;
use crate::verdict::{Success, Verdict};
use crate::x86::CpuInit;

/// How often a machine that sleeps looks whether it is to end: a signal to the process and the
/// end of a time limit wake nobody here.
const LOOK: Duration = Duration::from_millis(10);

/// When a machine wakes, and where.
pub(super) struct Wake {
    /// The time since 1970-01-01 00:00 UTC.
    at: Duration,
    cpu: CpuInit,
}

impl Machine {
    /// What wakes the guest, if the verdict is that it has suspended the machine.
    pub(super) fn wake_of(&self, verdict: &Verdict) -> Option<Wake> {
        if *verdict != Verdict::Success(Success::Suspended) {
            return None;
        }
        let power = self.device(POWER_CONTROL)?.save();
        if !PowerControl::wakes_by_clock(&state::decode(&power).ok()?) {
            return None;
        }
        let clock = self.device(CMOS)?.save();
        let at = Cmos::alarm(&state::decode(&clock).ok()?, platform::now())?;
        let (segment, offset) = acpi::waking_vector(&self.incarnation.memory)?;
        Some(Wake { at, cpu: CpuInit::real(segment, offset) })
    }

    /// Sleeps until then, and wakes; or ends, if that is asked for before.
    pub(super) fn sleep(&mut self, wake: Wake) -> Result<(), Error> {
        self.control.rearm();
        while let Some(left) = wake.at.checked_sub(platform::now()).filter(|left| !left.is_zero()) {
            if self.control.should_stop() {
                self.end(self.control.verdict().unwrap_or_else(nothing_ran));
                return Ok(());
            }
            thread::sleep(left.min(LOOK));
        }
        self.wake(wake.cpu)
    }

    fn wake(&mut self, cpu: CpuInit) -> Result<(), Error> {
        let memory = self.incarnation.memory.clone();
        let description = "woken after a suspend to RAM".to_owned();
        let loaded = Loaded { cpu, description, ..self.loaded.clone() };
        let clock = self.device(CMOS).map(|device| device.save()).unwrap_or_default();
        let Self { config, control, console, pump, .. } = self;
        let (_, awake) = incarnate(config, || Ok((memory, loaded)), control, console, pump)?;
        self.go_on_as(awake);
        let power = state::encode(&PowerControl::woken_by_clock());
        for (name, saved) in [(CMOS, clock), (POWER_CONTROL, power)] {
            if let Some(device) = self.device(name) {
                device.restore(&saved)?;
            }
        }
        Ok(())
    }

    fn device(&self, name: &str) -> Option<&Arc<dyn Device>> {
        let found = self.incarnation.devices.iter().find(|(other, _)| *other == name);
        found.map(|(_, device)| device)
    }
}

//! What the kernel keeps of a VM beside its vCPUs, saved and restored: the interrupt
//! controllers, the PIT, the clock. Called by `machine` while no vCPU runs.

use std::ops::Range;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pic_state,
};

use super::plain::{from_bytes, to_bytes};
use super::{Error, Vm};
use crate::irq::Irqchip;
use crate::state::{self, Bytes};

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Where `kvm_irqchip` has the state of a PIC: behind the chip's number.
const PIC: Range<usize> = 8..24;

impl Vm {
    /// The state of what the kernel keeps.
    pub fn save(&self) -> Result<state::Chips, Error> {
        let clock = self.fd.get_clock().map_err(Error::ioctl("KVM_GET_CLOCK"))?.clock;
        if self.irqchip != Irqchip::Full {
            return Ok(state::Chips { clock, ..state::Chips::default() });
        }
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(Error::ioctl("KVM_GET_IRQCHIP"))?;
            Ok(Bytes(to_bytes(&chip)))
        };
        let irqchips = CHIPS.into_iter().map(chip).collect::<Result<_, Error>>()?;
        let pit = self.fd.get_pit2().map_err(Error::ioctl("KVM_GET_PIT2"))?;
        Ok(state::Chips { irqchips, pit: Some(to_bytes(&pit)), clock })
    }

    /// The vectors of the interrupts that the kernel's 8259s hold: those that are pending, then
    /// those whose handlers have not said that they are done. Empty where it has none.
    pub fn pic_vectors(&self) -> Result<Vec<u8>, Error> {
        if self.irqchip != Irqchip::Full {
            return Ok(Vec::new());
        }
        let (mut pending, mut in_service) = (Vec::new(), Vec::new());
        for chip_id in [KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_PIC_MASTER] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(Error::ioctl("KVM_GET_IRQCHIP"))?;
            let pic: kvm_pic_state = from_bytes(&to_bytes(&chip)[PIC]).map_err(Error::State)?;
            let vectors = |lines: u8| {
                let set = (0..8).rev().filter(move |line| lines >> line & 1 != 0);
                // The second PIC hangs on the first one's line 2.
                let own = set.filter(move |line| chip_id == KVM_IRQCHIP_PIC_SLAVE || *line != 2);
                own.map(move |line| pic.irq_base.wrapping_add(line))
            };
            pending.extend(vectors(pic.irr & !pic.imr));
            in_service.extend(vectors(pic.isr));
        }
        pending.extend(in_service);
        Ok(pending)
    }

    /// Puts it back; before the vCPUs, because an interrupt that waits reaches them here. The
    /// PIT's counters begin a new period.
    ///
    /// # Errors
    /// A state that is malformed, or that KVM refuses.
    pub fn restore(&self, saved: &state::Chips) -> Result<(), Error> {
        let state::Chips { irqchips, pit, clock } = saved;
        // The PIT first: setting it waits for a tick that is on its way to the controllers.
        if let Some(pit) = pit {
            let pit = from_bytes(pit).map_err(Error::State)?;
            self.fd.set_pit2(&pit).map_err(Error::ioctl("KVM_SET_PIT2"))?;
        }
        for Bytes(chip) in irqchips {
            let chip = from_bytes(chip).map_err(Error::State)?;
            self.fd.set_irqchip(&chip).map_err(Error::ioctl("KVM_SET_IRQCHIP"))?;
        }
        let clock = kvm_clock_data { clock: *clock, ..Default::default() };
        self.fd.set_clock(&clock).map_err(Error::ioctl("KVM_SET_CLOCK"))
    }
}

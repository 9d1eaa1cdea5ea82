//! A vCPU's whole state, saved and restored: called by `machine` while no vCPU runs.

use kvm_bindings::{
    KVM_MAX_MSR_ENTRIES, KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_SYNC_X86_EVENTS,
    KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xsave,
};

use super::{Vcpu, general};
use crate::kvm::plain::{from_bytes, to_bytes};
use crate::kvm::{Error, Exit, Kvm};
use crate::state::{self, Malformed, Msr};

/// IA32_TSC_DEADLINE: written last, when the local APIC's timer is in its mode.
const TSC_DEADLINE: u32 = 0x6E0;
/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// The local APIC's task priority (Intel SDM Vol. 3A 11.8.3.1); CR8 is its high half.
const TASK_PRIORITY: usize = 0x80;
/// KVM's wall clock: a write of an address makes KVM write to the guest's memory there.
const WALL_CLOCK: [u32; 2] = [0x11, 0x4B56_4D00];

/// MSRs that KVM keeps without naming them in KVM_GET_MSR_INDEX_LIST: the APIC base, which the
/// local APIC's state depends on, and the memory type ranges.
const UNLISTED: [(u32, u32); 5] =
    [(0x1B, 0x1B), (0x200, 0x20F), (0x250, 0x259), (0x268, 0x26F), (0x2FF, 0x2FF)];

impl Kvm {
    /// The numbers of all MSRs that a vCPU may have.
    pub fn msr_numbers(&self) -> Result<Vec<u32>, Error> {
        let listed = self.fd.get_msr_index_list();
        let listed = listed.map_err(Error::ioctl("KVM_GET_MSR_INDEX_LIST"))?;
        let unlisted = UNLISTED.iter().flat_map(|&(first, last)| first..=last);
        let mut numbers: Vec<u32> = unlisted.chain(listed.as_slice().iter().copied()).collect();
        numbers.dedup();
        numbers.truncate(KVM_MAX_MSR_ENTRIES);
        Ok(numbers)
    }
}

impl Vcpu {
    /// Its whole state; `msrs` are the candidates. An instruction that is half done is finished
    /// first.
    pub fn save(&mut self, msrs: &[u32]) -> Result<state::Cpu, Error> {
        self.finish()?;
        let fd = &self.fd;
        // First: it settles INIT and SIPI that wait, which changes the rest.
        let mp_state = if self.local_apic { Some(self.mp_state()?) } else { None };
        let lapic = match mp_state {
            None => None,
            Some(_) => Some(to_bytes(&fd.get_lapic().map_err(Error::ioctl("KVM_GET_LAPIC"))?)),
        };
        Ok(state::Cpu {
            regs: to_bytes(&fd.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?),
            sregs: to_bytes(&fd.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?),
            events: to_bytes(&fd.get_vcpu_events().map_err(Error::ioctl("KVM_GET_VCPU_EVENTS"))?),
            xsave: to_bytes(&fd.get_xsave().map_err(Error::ioctl("KVM_GET_XSAVE"))?),
            xcrs: to_bytes(&fd.get_xcrs().map_err(Error::ioctl("KVM_GET_XCRS"))?),
            debugregs: to_bytes(&fd.get_debug_regs().map_err(Error::ioctl("KVM_GET_DEBUGREGS"))?),
            msrs: self.save_msrs(msrs)?,
            lapic,
            mp_state,
        })
    }

    /// Puts it back. General and system registers travel with the next KVM_RUN where that is
    /// sure to take them, which saves three ioctls; nothing else of this vCPU is asked before.
    /// `alone`: there is no other vCPU, which could send this one an INIT or an NMI before that:
    /// the events that travel would take it away again. `ran`: an instruction of its own ended its
    /// last run, and nothing has happened to it since.
    ///
    /// # Errors
    /// A state that is malformed, or that KVM refuses.
    pub fn restore(&mut self, saved: &state::Cpu, alone: bool, ran: bool) -> Result<(), Error> {
        let state::Cpu { regs, sregs, events, xsave, xcrs, debugregs, msrs, lapic, mp_state } =
            saved;
        let now = match mp_state {
            None => None,
            // An INIT that it has sent itself goes with the events.
            Some(_) if alone && ran => Some(KVM_MP_STATE_RUNNABLE),
            // Also settles INIT and SIPI that were sent to the state before.
            Some(_) => Some(self.mp_state()?),
        };
        let xsave = from_bytes(xsave).map_err(malformed)?;
        self.set_xsave(&xsave)?;
        let xcrs = from_bytes(xcrs).map_err(malformed)?;
        self.fd.set_xcrs(&xcrs).map_err(Error::ioctl("KVM_SET_XCRS"))?;
        let debugregs = from_bytes(debugregs).map_err(malformed)?;
        self.fd.set_debug_regs(&debugregs).map_err(Error::ioctl("KVM_SET_DEBUGREGS"))?;
        let with_run = alone && goes_with_run(*mp_state, lapic.as_deref());
        self.restore_registers(regs, sregs, events, with_run)?;
        self.set_all_msrs(msrs)?;
        if let Some(lapic) = lapic {
            let lapic = from_bytes(lapic).map_err(malformed)?;
            self.fd.set_lapic(&lapic).map_err(Error::ioctl("KVM_SET_LAPIC"))?;
            self.restore_deadline(msrs)?;
        }
        if let Some(mp_state) = mp_state.filter(|_| *mp_state != now) {
            let refused = Error::ioctl("KVM_SET_MP_STATE");
            self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused)?;
        }
        Ok(())
    }

    /// Has KVM finish an instruction that is half done, and take registers that wait for it.
    fn finish(&mut self) -> Result<(), Error> {
        self.fd.set_kvm_immediate_exit(1);
        let interrupted = matches!(self.run(), (_, Exit::Interrupted));
        self.clear_immediate_exit();
        if interrupted { Ok(()) } else { Err(refused("KVM_RUN with immediate_exit")) }
    }

    /// Gives it extended state.
    pub(super) fn set_xsave(&self, xsave: &kvm_xsave) -> Result<(), Error> {
        // SAFETY: KVM reads 4096 bytes, the structure's size, unless the process has asked for
        // larger state (ARCH_REQ_XCOMP_GUEST_PERM), which nothing here does.
        unsafe { self.fd.set_xsave(xsave) }.map_err(Error::ioctl("KVM_SET_XSAVE"))
    }

    /// Has KVM take registers that wait for the next KVM_RUN, so that it can be asked for them.
    /// False where none wait: it has run since it was given any. Ones that KVM refuses wait on.
    pub fn settle(&mut self) -> Result<bool, Error> {
        if self.fd.get_kvm_run().kvm_dirty_regs == 0 {
            return Ok(false);
        }
        self.finish().map(|()| true)
    }

    fn mp_state(&self) -> Result<u32, Error> {
        let state = self.fd.get_mp_state().map_err(Error::ioctl("KVM_GET_MP_STATE"))?;
        Ok(state.mp_state)
    }

    fn restore_registers(
        &mut self,
        regs: &[u8],
        sregs: &[u8],
        events: &[u8],
        with_run: bool,
    ) -> Result<(), Error> {
        let regs: kvm_regs = from_bytes(regs).map_err(malformed)?;
        let sregs: kvm_sregs = from_bytes(sregs).map_err(malformed)?;
        let events: kvm_vcpu_events = from_bytes(events).map_err(malformed)?;
        let sync = self.fd.sync_regs_mut();
        (sync.regs, sync.sregs, sync.events) = (regs, sregs, events);
        self.previous = general(&regs);
        // Without a local APIC KVM_RUN takes CR8 from here, after the system registers.
        self.fd.get_kvm_run().cr8 = sregs.cr8;
        let all = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
        self.fd.get_kvm_run().kvm_dirty_regs = if with_run { all.into() } else { 0 };
        if !with_run {
            self.fd.set_sregs(&sregs).map_err(Error::ioctl("KVM_SET_SREGS"))?;
            self.fd.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))?;
            self.fd.set_vcpu_events(&events).map_err(Error::ioctl("KVM_SET_VCPU_EVENTS"))?;
        }
        Ok(())
    }

    /// Those of the candidates that KVM gives, and takes back.
    fn save_msrs(&self, candidates: &[u32]) -> Result<Vec<Msr>, Error> {
        let entry = |index: &u32| kvm_msr_entry { index: *index, ..Default::default() };
        let entries: Vec<_> = candidates.iter().map(entry).collect();
        let got =
            accepted(entries, |msrs| self.fd.get_msrs(msrs).map_err(Error::ioctl("KVM_GET_MSRS")))?;
        let got = got.into_iter().filter(|msr| !WALL_CLOCK.contains(&msr.index) || msr.data == 0);
        let taken = accepted(got.collect(), |msrs| {
            self.fd.set_msrs(msrs).map_err(Error::ioctl("KVM_SET_MSRS"))
        })?;
        Ok(taken.iter().map(|msr| Msr { index: msr.index, value: msr.data }).collect())
    }

    fn set_all_msrs(&self, saved: &[Msr]) -> Result<(), Error> {
        let entry =
            |msr: &Msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() };
        let entries: Vec<_> = saved.iter().map(entry).collect();
        let list = Msrs::from_entries(&entries).map_err(|_| refused("a list of MSRs"))?;
        match self.fd.set_msrs(&list).map_err(Error::ioctl("KVM_SET_MSRS"))? {
            n if n == saved.len() => Ok(()),
            _ => Err(refused("KVM_SET_MSRS")),
        }
    }

    /// A deadline is a point of the TSC's, which KVM may have let run on.
    fn restore_deadline(&self, saved: &[Msr]) -> Result<(), Error> {
        let value = |index| saved.iter().find(|msr| msr.index == index).map(|msr| msr.value);
        let (Some(deadline @ 1..), Some(then)) = (value(TSC_DEADLINE), value(TSC)) else {
            return Ok(());
        };
        let entry = kvm_msr_entry { index: TSC, ..Default::default() };
        let mut now = Msrs::from_entries(&[entry]).map_err(|_| refused("a list of MSRs"))?;
        self.fd.get_msrs(&mut now).map_err(Error::ioctl("KVM_GET_MSRS"))?;
        let now = now.as_slice().first().map_or(then, |msr| msr.data);
        let value = deadline.wrapping_sub(then).wrapping_add(now);
        self.set_all_msrs(&[Msr { index: TSC_DEADLINE, value }])
    }
}

/// Is the next KVM_RUN sure to take general and system registers, and is that the right time?
fn goes_with_run(mp_state: Option<u32>, lapic: Option<&[u8]>) -> bool {
    // Before another vCPU has started it KVM_RUN takes none, and then they are the wrong ones.
    let runs = matches!(mp_state, None | Some(KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED));
    // With CR8 the system registers set the task priority, and clear what CR8 has no bits for.
    let priority = lapic.and_then(|lapic| lapic.get(TASK_PRIORITY)).copied().unwrap_or(0);
    runs && priority & 0xF == 0
}

/// Those of the entries that KVM takes, which stops at the first that it does not.
fn accepted(
    mut entries: Vec<kvm_msr_entry>,
    ioctl: impl Fn(&mut Msrs) -> Result<usize, Error>,
) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut done = Vec::with_capacity(entries.len());
    while !entries.is_empty() {
        let mut list = Msrs::from_entries(&entries).map_err(|_| refused("a list of MSRs"))?;
        let count = ioctl(&mut list)?.min(entries.len());
        done.extend_from_slice(&list.as_slice()[..count]);
        entries.drain(..entries.len().min(count + 1));
    }
    Ok(done)
}

fn refused(ioctl: &'static str) -> Error {
    Error::Ioctl { ioctl, source: std::io::Error::from_raw_os_error(libc::EINVAL) }
}

/// For `map_err`.
fn malformed(e: Malformed) -> Error {
    Error::State(e)
}

//! Every register of a vCPU that stands still, for debuggers: read whole, written back in
//! the parts that changed.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Msrs, kvm_fpu, kvm_mp_state, kvm_msr_entry,
    kvm_xsave,
};

use super::Vcpu;
use super::convert::{change_sregs, regs};
use crate::kvm::Error;
use crate::x86::{Fpu, Registers};

/// IA32_KERNEL_GS_BASE.
const KERNEL_GS_BASE: u32 = 0xC000_0102;

/// MXCSR in the XSAVE area, in words of 32 bits (Intel SDM Vol. 1 10.5.1); KVM_GET_FPU and
/// KVM_SET_FPU leave it out.
const MXCSR: usize = 24 / 4;
/// The low half of XSTATE_BV (Intel SDM Vol. 1 13.4.2): without [`XSTATE_SSE`] KVM takes no MXCSR.
const XSTATE_BV: usize = 512 / 4;
const XSTATE_SSE: u32 = 1 << 1;

impl Vcpu {
    /// Its registers, by five ioctls: not for the exit path.
    pub fn registers(&self) -> Result<Registers, Error> {
        let fpu = self.fd.get_fpu().map_err(Error::ioctl("KVM_GET_FPU"))?;
        Ok(Registers {
            state: self.state()?,
            fpu: from_kvm(&fpu, self.xsave()?.region[MXCSR]),
            kernel_gs_base: self.kernel_gs_base()?,
        })
    }

    /// Gives it the registers `new` where they differ from those it has. KVM refuses what no
    /// processor can hold.
    pub fn set_registers(&mut self, new: &Registers) -> Result<(), Error> {
        let old = self.registers()?;
        let (now, then) = (&old.state, &new.state);
        if (now.regs, now.rflags) != (then.regs, then.rflags) {
            let regs = regs(&then.regs, then.rflags);
            self.fd.set_regs(&regs).map_err(Error::ioctl("KVM_SET_REGS"))?;
            self.fd.sync_regs_mut().regs = regs;
        }
        if now.regs.rip != then.regs.rip {
            self.wake()?;
        }
        let old_sregs = self.fd.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?;
        let mut sregs = old_sregs;
        change_sregs(&mut sregs, then);
        if sregs != old_sregs {
            self.fd.set_sregs(&sregs).map_err(Error::ioctl("KVM_SET_SREGS"))?;
        }
        if old.fpu != new.fpu {
            self.fd.set_fpu(&to_kvm(&new.fpu)).map_err(Error::ioctl("KVM_SET_FPU"))?;
        }
        if old.fpu.mxcsr != new.fpu.mxcsr {
            self.set_mxcsr(new.fpu.mxcsr)?;
        }
        if old.kernel_gs_base != new.kernel_gs_base {
            self.set_kernel_gs_base(new.kernel_gs_base)?;
        }
        Ok(())
    }

    /// One that is sent elsewhere does not stay in the HLT that it was in.
    fn wake(&self) -> Result<(), Error> {
        if !self.local_apic {
            return Ok(());
        }
        let state = self.fd.get_mp_state().map_err(Error::ioctl("KVM_GET_MP_STATE"))?;
        if state.mp_state != KVM_MP_STATE_HALTED {
            return Ok(());
        }
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(runnable).map_err(Error::ioctl("KVM_SET_MP_STATE"))
    }

    fn xsave(&self) -> Result<kvm_xsave, Error> {
        self.fd.get_xsave().map_err(Error::ioctl("KVM_GET_XSAVE"))
    }

    fn set_mxcsr(&self, value: u32) -> Result<(), Error> {
        let mut xsave = self.xsave()?;
        xsave.region[MXCSR] = value;
        xsave.region[XSTATE_BV] |= XSTATE_SSE;
        self.set_xsave(&xsave)
    }

    fn kernel_gs_base(&self) -> Result<u64, Error> {
        let mut msrs = one_msr(0)?;
        // An MSR that KVM does not know is left out, and reads as 0 here.
        self.fd.get_msrs(&mut msrs).map_err(Error::ioctl("KVM_GET_MSRS"))?;
        Ok(msrs.as_slice().first().map_or(0, |msr| msr.data))
    }

    fn set_kernel_gs_base(&self, value: u64) -> Result<(), Error> {
        let refused = || std::io::Error::from_raw_os_error(libc::EINVAL);
        match self.fd.set_msrs(&one_msr(value)?).map_err(Error::ioctl("KVM_SET_MSRS"))? {
            1 => Ok(()),
            _ => Err(Error::Ioctl { ioctl: "KVM_SET_MSRS", source: refused() }),
        }
    }
}

/// The list with the one MSR; refused only for want of memory.
fn one_msr(data: u64) -> Result<Msrs, Error> {
    let entry = kvm_msr_entry { index: KERNEL_GS_BASE, data, ..Default::default() };
    let refused = |_| std::io::ErrorKind::OutOfMemory.into();
    Msrs::from_entries(&[entry])
        .map_err(|e| Error::Ioctl { ioctl: "a list of MSRs", source: refused(e) })
}

fn from_kvm(fpu: &kvm_fpu, mxcsr: u32) -> Fpu {
    Fpu {
        st: fpu.fpr,
        control: fpu.fcw,
        status: fpu.fsw,
        in_use: fpu.ftwx,
        opcode: fpu.last_opcode,
        ip: fpu.last_ip,
        dp: fpu.last_dp,
        xmm: fpu.xmm,
        mxcsr,
    }
}

fn to_kvm(fpu: &Fpu) -> kvm_fpu {
    kvm_fpu {
        fpr: fpu.st,
        fcw: fpu.control,
        fsw: fpu.status,
        ftwx: fpu.in_use,
        last_opcode: fpu.opcode,
        last_ip: fpu.ip,
        last_dp: fpu.dp,
        xmm: fpu.xmm,
        ..Default::default()
    }
}

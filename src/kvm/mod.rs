//! The KVM API, and the only module that names kvm-ioctls: what the host offers, a VM, its
//! vCPUs, and why each of them came back.
//!
//! Called by `vcpu` and `machine`; knows no device and no bus.

mod capability;
mod caps;
mod chips;
mod dirty;
mod exit;
mod hyperv;
mod kept;
mod plain;
mod shadow;
mod slots;
mod stats;
mod vcpu;
mod vm;

pub use capability::{CAPABILITIES, Capability, Offer, offer};
pub use caps::{Backend, Kvm};
pub use dirty::DirtyLog;
pub use exit::{Exit, ExitKind, InternalError, decode};
pub use hyperv::INVALID_HYPERCALL_CODE;
#[cfg(test)]
pub(crate) use kept::tests as testing;
pub use kept::{Kept, value_of};
pub use shadow::Shadows;
pub use slots::{Guard, Guarded};
pub use stats::{Stat, StatKind, StatUnit};
pub use vcpu::{
    Debug, DebugRegisters, Events, HardwareBreakpoint, HltStep, Inject, LocalApic, RunState, Vcpu,
    WatchKind, general,
};
pub use vm::{SupportedCpuid, Vm};

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device node is not there, or not for us.
    #[error("no usable KVM: cannot open {path}: {advice}")]
    Open {
        /// The device node.
        path: String,
        /// What to do about it.
        advice: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The device node is not KVM's, or its KVM is too old.
    #[error("no usable KVM: {path} lacks {missing}")]
    Missing {
        /// The device node.
        path: String,
        /// A capability's name.
        missing: &'static str,
    },
    /// The processor's virtualisation is in use by another hypervisor, or switched off.
    #[error("no usable KVM: KVM_CREATE_VM was refused: {advice}")]
    CreateVm {
        /// What to do about it.
        advice: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An ioctl failed.
    #[error("the host refused {ioctl}")]
    Ioctl {
        /// The ioctl's name in the KVM API.
        ioctl: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A state to be restored is none.
    #[error(transparent)]
    State(crate::state::Malformed),
}

impl Error {
    /// For `map_err`: an ioctl by its name.
    fn ioctl(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Ioctl { ioctl, source: e.into() }
    }

    /// Is there no KVM to use at all, rather than one that refused something?
    /// Limits that are used up are not: `--if-no-kvm=skip` must not hide them.
    pub fn is_no_kvm(&self) -> bool {
        match self {
            Self::Ioctl { .. } | Self::State(_) => false,
            Self::Open { source, .. } => {
                !matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
            }
            _ => true,
        }
    }
}

//! Facts about the processor, as data: segments, control registers, page tables, the
//! state a vCPU starts in, what CPUID may show.
//!
//! Called by `boot` (which decides on a state), `kvm` (which loads it) and whoever looks at a
//! guest that stands still; knows no ioctl.

pub mod control;
pub mod cpuid;
pub mod features;
pub mod init;
pub mod model;
pub mod paging;
pub mod segment;
pub mod state;

pub use control::{Cr0, Cr4, Efer, Rflags};
pub use cpuid::PagingFeatures;
pub use init::{CpuInit, DescriptorTable, Mode, Regs};
pub use model::Model;
pub use segment::Segment;
pub use state::{CpuState, Fpu, Registers};

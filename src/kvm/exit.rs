//! Why KVM_RUN came back: `struct kvm_run` decoded (Linux, Documentation/virt/kvm/api.rst, 5).
//!
//! Decoded here and not by kvm-ioctls, whose I/O exits hide the size of an element: a
//! `rep insb` of 16 bytes would look like one access of 16 bytes.

use kvm_bindings::*;

/// Why the guest stopped; what has to be filled in lies in `kvm_run` itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// IN or INS: `data` holds one or more elements of `size` bytes.
    PioIn {
        /// I/O port.
        port: u16,
        /// Bytes an element: 1, 2 or 4.
        size: usize,
        /// To be filled in.
        data: &'a mut [u8],
    },
    /// OUT or OUTS: `data` holds one or more elements of `size` bytes.
    PioOut {
        /// I/O port.
        port: u16,
        /// Bytes an element: 1, 2 or 4.
        size: usize,
        /// What the guest wrote.
        data: &'a [u8],
    },
    /// A read where no memory is.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// To be filled in, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// A write where no memory is.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What the guest wrote, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// RDMSR of an MSR that KVM does not know.
    ReadMsr {
        /// The MSR.
        index: u32,
        /// Set to 1 for #GP.
        error: &'a mut u8,
    },
    /// WRMSR to an MSR that KVM does not know, or of a value that it refuses.
    WriteMsr {
        /// The MSR.
        index: u32,
        /// The value.
        value: u64,
        /// Set to 1 for #GP.
        error: &'a mut u8,
    },
    /// VMCALL or VMMCALL, where KVM passes it on.
    Hypercall {
        /// RAX.
        number: u64,
        /// RBX, RCX, RDX and RSI (Linux, Documentation/virt/kvm/x86/hypercalls.rst).
        args: [u64; 6],
        /// What RAX is to be.
        result: &'a mut u64,
    },
    /// Hyper-V's interface: the synthetic interrupt controller was set up, or a hypercall came.
    Hyperv {
        /// Of a hypercall: its status.
        result: Option<&'a mut u64>,
    },
    /// CR8 was lowered, without a local APIC in the kernel: nothing that waits could come now.
    SetTpr,
    /// HLT, without an interrupt controller in the kernel.
    Hlt,
    /// A triple fault.
    Shutdown,
    /// The hardware refused to enter the guest.
    FailEntry {
        /// VT-x: the basic exit reason and its flags; AMD-V: the VMCB's EXITCODE.
        reason: u64,
    },
    /// KVM could not go on.
    InternalError(InternalError),
    /// The guest told KVM of an event of the whole system.
    SystemEvent {
        /// KVM_SYSTEM_EVENT_*.
        kind: u32,
    },
    /// A breakpoint, a watchpoint or a single step.
    Debug {
        /// The exception: 1 (#DB) or 3 (#BP).
        exception: u32,
        /// The instruction pointer, a linear address.
        pc: u64,
        /// What the debug status register shows.
        dr6: u64,
    },
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// KVM_RUN failed, in another way than for a signal.
    Failed {
        /// The error number.
        errno: i32,
    },
    /// A reason that nothing here asked for.
    Other {
        /// KVM_EXIT_*.
        reason: u32,
    },
}

/// What KVM says of an internal error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// KVM_INTERNAL_ERROR_*.
    pub suberror: u32,
    /// The bytes at RIP, where KVM gives them; `len` of them count.
    bytes: [u8; 15],
    len: usize,
}

impl InternalError {
    /// The bytes of the instruction that could not be emulated; empty where KVM gave none.
    pub fn instruction_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The suberror in words.
    pub fn words(&self) -> &'static str {
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "emulation failure",
            KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
            _ => "unknown suberror",
        }
    }
}

/// The kinds of exit, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named after the exits
#[repr(u8)]
pub enum ExitKind {
    PioIn,
    PioOut,
    MmioRead,
    MmioWrite,
    ReadMsr,
    WriteMsr,
    Hypercall,
    Hlt,
    Shutdown,
    FailEntry,
    InternalError,
    SystemEvent,
    Debug,
    Hyperv,
    SetTpr,
    Interrupted,
    Failed,
    Other,
}

impl ExitKind {
    /// Every kind with its name in reports.
    pub const NAMES: [&'static str; 18] = [
        "pio_in",
        "pio_out",
        "mmio_read",
        "mmio_write",
        "read_msr",
        "write_msr",
        "hypercall",
        "hlt",
        "shutdown",
        "fail_entry",
        "internal_error",
        "system_event",
        "debug",
        "hyperv",
        "set_tpr",
        "interrupted",
        "failed",
        "other",
    ];

    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::PioIn,
        Self::PioOut,
        Self::MmioRead,
        Self::MmioWrite,
        Self::ReadMsr,
        Self::WriteMsr,
        Self::Hypercall,
        Self::Hlt,
        Self::Shutdown,
        Self::FailEntry,
        Self::InternalError,
        Self::SystemEvent,
        Self::Debug,
        Self::Hyperv,
        Self::SetTpr,
        Self::Interrupted,
        Self::Failed,
        Self::Other,
    ];

    /// Is it about a port, an address, an MSR or a hypercall's number?
    pub fn has_address(self) -> bool {
        (self as usize) <= Self::Hypercall as usize
    }

    /// Does the guest make it on its way, every time that it runs? A kick and what a debugger asked
    /// for come from outside, a shutdown is its end.
    pub fn is_guests_own(self) -> bool {
        !matches!(self, Self::Interrupted | Self::Debug | Self::Shutdown)
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl Exit<'_> {
    /// Its kind.
    #[inline]
    pub fn kind(&self) -> ExitKind {
        match self {
            Self::PioIn { .. } => ExitKind::PioIn,
            Self::PioOut { .. } => ExitKind::PioOut,
            Self::MmioRead { .. } => ExitKind::MmioRead,
            Self::MmioWrite { .. } => ExitKind::MmioWrite,
            Self::ReadMsr { .. } => ExitKind::ReadMsr,
            Self::WriteMsr { .. } => ExitKind::WriteMsr,
            Self::Hypercall { .. } => ExitKind::Hypercall,
            Self::Hlt => ExitKind::Hlt,
            Self::Shutdown => ExitKind::Shutdown,
            Self::FailEntry { .. } => ExitKind::FailEntry,
            Self::InternalError(_) => ExitKind::InternalError,
            Self::SystemEvent { .. } => ExitKind::SystemEvent,
            Self::Debug { .. } => ExitKind::Debug,
            Self::Hyperv { .. } => ExitKind::Hyperv,
            Self::SetTpr => ExitKind::SetTpr,
            Self::Interrupted => ExitKind::Interrupted,
            Self::Failed { .. } => ExitKind::Failed,
            Self::Other { .. } => ExitKind::Other,
        }
    }
}

/// What `exit_reason` is where KVM_RUN failed: KVM has no such reason. The error number lies
/// where KVM_EXIT_UNKNOWN has the hardware's.
const FAILED: u32 = u32::MAX;

/// Says in `kvm_run` how KVM_RUN failed, so that it is found there like any other exit.
#[cold]
pub(super) fn set_failed(run: &mut kvm_run, errno: i32) {
    run.exit_reason = match errno {
        libc::EINTR => KVM_EXIT_INTR,
        // An AP that another vCPU has just kicked out of its wait (api.rst, KVM_RUN).
        libc::EAGAIN => KVM_EXIT_INTR,
        _ => FAILED,
    };
    run.__bindgen_anon_1.hw.hardware_exit_reason = errno as u64;
}

/// Decodes the page that KVM shares with user space: `struct kvm_run`, and behind it the
/// data of port I/O.
///
/// # Panics
/// Where `page` is smaller than `struct kvm_run` or not aligned for it.
#[inline(always)]
pub fn decode(page: &mut [u8]) -> Exit<'_> {
    let (run, behind) = page.split_at_mut(size_of::<kvm_run>());
    let run = run.as_mut_ptr().cast::<kvm_run>();
    assert!(run.is_aligned());
    // SAFETY: size and alignment are right; every bit pattern is a kvm_run, a C structure of
    // integers; the part of `page` that it lies in is borrowed exclusively.
    let run = unsafe { &mut *run };
    exit(run.exit_reason, &mut run.__bindgen_anon_1, behind)
}

/// The exit for a reason from the union in `kvm_run`, and what lies behind `kvm_run`.
#[inline(always)]
pub(super) fn exit<'a>(
    reason: u32,
    of: &'a mut kvm_run__bindgen_ty_1,
    behind: &'a mut [u8],
) -> Exit<'a> {
    // SAFETY (of all union reads below): the kernel filled in the member that the reason
    // names, and every member is made of integers.
    match reason {
        KVM_EXIT_IO => pio(unsafe { of.io }, behind),
        KVM_EXIT_MMIO => {
            let mmio = unsafe { &mut of.mmio };
            let (address, len) = (mmio.phys_addr, (mmio.len as usize).min(mmio.data.len()));
            match mmio.is_write {
                0 => Exit::MmioRead { address, data: &mut mmio.data[..len] },
                _ => Exit::MmioWrite { address, data: &mmio.data[..len] },
            }
        }
        KVM_EXIT_X86_RDMSR => {
            let msr = unsafe { &mut of.msr };
            Exit::ReadMsr { index: msr.index, error: &mut msr.error }
        }
        KVM_EXIT_X86_WRMSR => {
            let msr = unsafe { &mut of.msr };
            Exit::WriteMsr { index: msr.index, value: msr.data, error: &mut msr.error }
        }
        KVM_EXIT_HYPERCALL => {
            let call = unsafe { &mut of.hypercall };
            Exit::Hypercall { number: call.nr, args: call.args, result: &mut call.ret }
        }
        KVM_EXIT_HLT => Exit::Hlt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_FAIL_ENTRY => {
            Exit::FailEntry { reason: unsafe { of.fail_entry }.hardware_entry_failure_reason }
        }
        KVM_EXIT_INTERNAL_ERROR => Exit::InternalError(internal_error(unsafe { &of.internal })),
        KVM_EXIT_SYSTEM_EVENT => Exit::SystemEvent { kind: unsafe { of.system_event }.type_ },
        KVM_EXIT_DEBUG => {
            let debug = unsafe { of.debug }.arch;
            Exit::Debug { exception: debug.exception, pc: debug.pc, dr6: debug.dr6 }
        }
        KVM_EXIT_HYPERV => {
            let hyperv = unsafe { &mut of.hyperv };
            let is_call = hyperv.type_ == KVM_EXIT_HYPERV_HCALL;
            Exit::Hyperv { result: is_call.then_some(unsafe { &mut hyperv.u.hcall.result }) }
        }
        KVM_EXIT_SET_TPR => Exit::SetTpr,
        KVM_EXIT_INTR => Exit::Interrupted,
        FAILED => Exit::Failed { errno: unsafe { of.hw }.hardware_exit_reason as i32 },
        reason => Exit::Other { reason },
    }
}

/// Port I/O: the data lies `data_offset` from the start of `kvm_run`.
#[inline]
fn pio(io: kvm_run__bindgen_ty_1__bindgen_ty_4, behind: &mut [u8]) -> Exit<'_> {
    let (port, size) = (io.port, usize::from(io.size));
    let data = (io.data_offset as usize)
        .checked_sub(size_of::<kvm_run>())
        .and_then(|start| behind.get_mut(start..start.checked_add(size * io.count as usize)?))
        .filter(|_| matches!(size, 1 | 2 | 4));
    match data {
        None => Exit::Other { reason: KVM_EXIT_IO },
        Some(data) if u32::from(io.direction) == KVM_EXIT_IO_IN => Exit::PioIn { port, size, data },
        Some(data) => Exit::PioOut { port, size, data },
    }
}

#[cold]
fn internal_error(internal: &kvm_run__bindgen_ty_1__bindgen_ty_13) -> InternalError {
    let mut error = InternalError { suberror: internal.suberror, bytes: [0; 15], len: 0 };
    // data[0] holds flags, data[1] a size and the first seven instruction bytes (api.rst,
    // KVM_EXIT_INTERNAL_ERROR, emulation_failure).
    let has_bytes =
        internal.data[0] & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && internal.ndata >= 3 && has_bytes {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&internal.data[1].to_le_bytes());
        raw[8..].copy_from_slice(&internal.data[2].to_le_bytes());
        error.len = usize::from(raw[0]).min(15);
        error.bytes.copy_from_slice(&raw[1..]);
    }
    error
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A page as KVM maps it: `kvm_run`, and a page for port I/O's data.
    pub(in crate::kvm) fn page(fill: impl FnOnce(&mut kvm_run)) -> Vec<u64> {
        let mut page = vec![0_u64; 1536];
        // SAFETY: 12 KiB, aligned to 8 bytes, all zero: a kvm_run.
        fill(unsafe { &mut *page.as_mut_ptr().cast::<kvm_run>() });
        page
    }

    pub(in crate::kvm) fn bytes(page: &mut [u64]) -> &mut [u8] {
        let len = size_of_val(page);
        // SAFETY: the same memory, exclusively borrowed, as bytes.
        unsafe { std::slice::from_raw_parts_mut(page.as_mut_ptr().cast(), len) }
    }

    pub(in crate::kvm) fn io(direction: u32, size: u8, count: u32, data_offset: u64) -> Vec<u64> {
        page(|run| {
            run.exit_reason = KVM_EXIT_IO;
            run.__bindgen_anon_1.io = kvm_run__bindgen_ty_1__bindgen_ty_4 {
                direction: direction as u8,
                size,
                port: 0x3F8,
                count,
                data_offset,
            };
        })
    }

    #[test]
    fn string_io_keeps_the_size_of_an_element() {
        let mut page = io(KVM_EXIT_IO_OUT, 2, 3, 4096);
        bytes(&mut page)[4096..4102].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        let exit = decode(bytes(&mut page));
        assert_eq!(exit, Exit::PioOut { port: 0x3F8, size: 2, data: &[1, 2, 3, 4, 5, 6] });
    }

    #[test]
    fn what_is_filled_in_reaches_the_page() {
        let mut page = io(KVM_EXIT_IO_IN, 4, 1, 4096);
        match decode(bytes(&mut page)) {
            Exit::PioIn { size: 4, data, .. } => data.copy_from_slice(&[9, 8, 7, 6]),
            other => panic!("{other:?}"),
        }
        assert_eq!(&bytes(&mut page)[4096..4100], [9, 8, 7, 6]);
    }

    #[test]
    fn data_outside_the_page_is_refused() {
        for (size, count, offset) in
            [(4, 1 << 30, 4096), (1, 1, 12288), (1, 1, u64::MAX), (3, 1, 4096)]
        {
            let mut page = io(KVM_EXIT_IO_IN, size, count, offset);
            assert_eq!(decode(bytes(&mut page)), Exit::Other { reason: KVM_EXIT_IO });
        }
    }

    #[test]
    fn mmio_has_the_length_of_the_access() {
        let mut page = page(|run| {
            run.exit_reason = KVM_EXIT_MMIO;
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            (mmio.phys_addr, mmio.len, mmio.is_write) = (0xD000_0000, 2, 1);
            mmio.data = [1, 2, 3, 4, 5, 6, 7, 8];
        });
        let exit = decode(bytes(&mut page));
        assert_eq!(exit, Exit::MmioWrite { address: 0xD000_0000, data: &[1, 2] });
    }

    #[test]
    fn emulation_failures_carry_the_instruction() {
        let mut page = page(|run| {
            run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
            let internal = unsafe { &mut run.__bindgen_anon_1.internal };
            (internal.suberror, internal.ndata) = (KVM_INTERNAL_ERROR_EMULATION, 4);
            internal.data[0] = 1;
            internal.data[1] = u64::from_le_bytes([3, 0x0F, 0x01, 0xD0, 0xAA, 0, 0, 0]);
        });
        match decode(bytes(&mut page)) {
            Exit::InternalError(error) => {
                assert_eq!(error.instruction_bytes(), [0x0F, 0x01, 0xD0]);
                assert_eq!(error.words(), "emulation failure");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_of_kvm_run_is_an_exit() {
        let found = |errno| {
            let mut page = page(|run| set_failed(run, errno));
            format!("{:?}", decode(bytes(&mut page)))
        };
        assert_eq!(found(libc::EINTR), "Interrupted");
        assert_eq!(found(libc::EAGAIN), "Interrupted");
        assert_eq!(found(libc::EINVAL), format!("{:?}", Exit::Failed { errno: libc::EINVAL }));
    }

    #[test]
    fn every_kind_has_a_name() {
        assert_eq!(ExitKind::NAMES[ExitKind::PioIn as usize], "pio_in");
        assert_eq!(ExitKind::NAMES[ExitKind::Other as usize], "other");
        for (number, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }
}

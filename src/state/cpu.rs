//! The saved state of vCPUs and of the interrupt controllers in the kernel: structures of the
//! KVM API as bytes (Linux, Documentation/virt/kvm/api.rst).

use minicbor::{Decode, Encode};

/// A model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Msr {
    /// Its number.
    #[n(0)]
    pub index: u32,
    /// Its value.
    #[n(1)]
    pub value: u64,
}

/// A vCPU, with nothing half done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Cpu {
    /// `kvm_regs`.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub regs: Vec<u8>,
    /// `kvm_sregs`.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub sregs: Vec<u8>,
    /// `kvm_vcpu_events`.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub events: Vec<u8>,
    /// `kvm_xsave`: x87, SSE, AVX and what else XCR0 knows.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub xsave: Vec<u8>,
    /// `kvm_xcrs`.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub xcrs: Vec<u8>,
    /// `kvm_debugregs`.
    #[n(5)]
    #[cbor(with = "minicbor::bytes")]
    pub debugregs: Vec<u8>,
    /// All MSRs that KVM gives and takes.
    #[n(6)]
    pub msrs: Vec<Msr>,
    /// `kvm_lapic_state`, where the local APIC is in the kernel.
    #[n(7)]
    #[cbor(with = "minicbor::bytes")]
    pub lapic: Option<Vec<u8>>,
    /// KVM_MP_STATE_*, where the local APIC is in the kernel.
    #[n(8)]
    pub mp_state: Option<u32>,
}

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_DEADLINE, and Hyper-V's run time and reference time: they
/// go on.
const TIME: [u32; 4] = [0x10, 0x6E0, 0x4000_0010, 0x4000_0020];
/// The local APIC's current count, which goes on (Intel SDM Vol. 3A 11.5.4).
const CURRENT_COUNT: std::ops::Range<usize> = 0x390..0x394;

impl Cpu {
    /// What is not the same in two states, but for what goes on by itself.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let Self { regs, sregs, events, xsave, xcrs, debugregs, msrs, lapic, mp_state } = self;
        let count_out = |lapic: &Option<Vec<u8>>| {
            let mut lapic = lapic.clone().unwrap_or_default();
            lapic.get_mut(CURRENT_COUNT).unwrap_or_default().fill(0);
            lapic
        };
        let parts = [
            ("regs", *regs == other.regs),
            ("sregs", *sregs == other.sregs),
            ("events", *events == other.events),
            ("xsave", *xsave == other.xsave),
            ("xcrs", *xcrs == other.xcrs),
            ("debugregs", *debugregs == other.debugregs),
            ("lapic", count_out(lapic) == count_out(&other.lapic)),
            ("mp_state", *mp_state == other.mp_state),
            ("list of msrs", msrs.len() == other.msrs.len()),
        ];
        let parts = parts.iter().filter(|(_, same)| !same).map(|(name, _)| (*name).to_owned());
        let pairs = msrs.iter().zip(&other.msrs);
        let changed = pairs.filter(|(one, other)| one != other && !TIME.contains(&one.index));
        parts.chain(changed.map(|(one, _)| format!("msr {:#x}", one.index))).collect()
    }
}

/// What the kernel keeps of a VM as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Chips {
    /// `kvm_irqchip` of both PICs and the I/O APIC, where they are in the kernel.
    #[n(0)]
    pub irqchips: Vec<Bytes>,
    /// `kvm_pit_state2`, where the PIT is in the kernel.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub pit: Option<Vec<u8>>,
    /// KVM's clock for guests, in nanoseconds.
    #[n(2)]
    pub clock: u64,
}

/// Where a tick of the PIT shows in the `kvm_irqchip` of the first PIC and of the I/O APIC: byte
/// and bits. The PIC's input 0 (last_irr, irr), the I/O APIC's inputs 0 and 2 (irr).
const TICKS: [(usize, usize, u8); 3] = [(0, 8, 1), (0, 9, 1), (2, 24, 0b101)];

impl Chips {
    /// Are the interrupt controllers the same, but for ticks of the PIT that wait?
    pub fn is_same(&self, other: &Self) -> bool {
        let ticks_out = |chips: &Self| {
            let mut chips = chips.irqchips.clone();
            for (chip, byte, bits) in TICKS {
                if let Some(byte) = chips.get_mut(chip).and_then(|chip| chip.0.get_mut(byte)) {
                    *byte &= !bits;
                }
            }
            chips
        };
        ticks_out(self) == ticks_out(other)
    }
}

/// A structure of the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Bytes(#[cbor(with = "minicbor::bytes")] pub Vec<u8>);

//! Whose is what a guest saw: its own, the host's, or neither. Compares three values; knows no KVM.

use super::context::{Context, Mode};
use super::ground;
use super::instruction::{Instruction, Pops, Sees};
use super::lab::Run;
use super::native::Native;
use super::program::{FS_BASE, TSC_AUX};
use super::report::{Seen, Whose};
use crate::x86::cpuid::Leaf;

/// What there is to compare with.
pub struct Sight<'a> {
    /// What the host shows to its programs.
    pub native: Option<&'a Native>,
    /// The host's leaf 1.
    pub host_leaf: Leaf,
    /// The guest's leaf 1.
    pub guest_leaf: Leaf,
    /// The host's time-stamp counter before and after the run.
    pub tsc: (u64, u64),
    /// Could TSC_AUX be set?
    pub aux: bool,
    /// CR4 of the guest.
    pub cr4: u64,
    /// Has the host's kernel UMIP on? Then it shows its programs stand-ins for what SGDT, SIDT, SLDT,
    /// SMSW and STR store (Linux, arch/x86/kernel/umip.c).
    pub umip: bool,
}

/// Three values that are the same or not.
struct Values {
    what: &'static str,
    seen: u128,
    own: u128,
    host: Option<u128>,
}

impl Values {
    /// Is there a bit that is not the guest's own, and is as the host has it?
    fn has_bits_of(&self, host: u128) -> bool {
        (self.seen ^ self.own) & !(self.seen ^ host) != 0
    }
}

/// What a time-stamp counter is called that was seen.
pub const CLOCK: &str = "time-stamp counter";
/// What the feature bits are called that were seen.
pub const FEATURES: &str = "feature bits (ECX, EDX)";

/// Flags of the system's: IF, IOPL, NT. RF is the processor's own while it raises exceptions.
const SYSTEM_FLAGS: u64 = 1 << 9 | 3 << 12 | 1 << 14;
/// LAR: type, S, DPL, P, and AVL, L, D, G; what lies between is undefined.
const RIGHTS: u64 = 0x00F0_FF00;
/// Bits of CPUID's leaf 1 that follow the processor's state: OSXSAVE; APIC.
const STATE_ECX: u32 = 1 << 27;
const STATE_EDX: u32 = 1 << 9;
const ZF: u64 = 1 << 6;
/// The local APIC's base at reset, on, of the first processor.
const APIC_BASE: u64 = 0xFEE0_0900;

impl Sight<'_> {
    /// Whose it is; `None` where the instruction shows nothing.
    pub fn judge(&self, row: &Instruction, context: Context, run: &Run) -> Option<Seen> {
        if row.sees == Sees::Tsc {
            return Some(self.clock(run));
        }
        let values = self.values(row, context, run)?;
        let whose = match values.host {
            // Bits are compared one by one: some may be the guest's.
            Some(host) if row.sees == Sees::Features && values.has_bits_of(host) => Whose::Host,
            // Nobody has set the guest's: it has none of its own.
            Some(0) if self.is_unset(row.sees) && values.seen == 0 => Whose::Zero,
            Some(host) if values.seen == values.own && host == values.own => Whose::Same,
            _ if values.seen == values.own => Whose::Own,
            // A zero is nobody's, unless it is an answer.
            Some(host) if values.seen == host && (host != 0 || row.sees == Sees::Verified) => {
                Whose::Host
            }
            Some(0) if values.seen == 0 => Whose::Zero,
            None if self.is_hidden(row.sees) => Whose::Unknown,
            _ => Whose::Constant,
        };
        let hex = |value: u128| format!("{value:#x}");
        Some(Seen {
            what: values.what.to_owned(),
            value: hex(values.seen),
            own: hex(values.own),
            host: values.host.map(hex),
            whose,
        })
    }

    /// Does the host keep from its programs what this instruction shows of it?
    fn is_hidden(&self, sees: Sees) -> bool {
        let by_umip = [Sees::Gdtr, Sees::Idtr, Sees::Ldtr, Sees::TaskRegister, Sees::MachineStatus];
        let never = [Sees::Cr3, Sees::Cr4, Sees::Dr7, Sees::ApicBase, Sees::FsBase];
        self.native.is_none() && !never.contains(&sees) || self.umip && by_umip.contains(&sees)
    }

    /// What the host shows its programs, where it shows this.
    fn shown(&self, sees: Sees) -> Option<&Native> {
        self.native.filter(|_| !self.is_hidden(sees))
    }

    /// TSC_AUX, where the guest's kernel may not write it.
    fn is_unset(&self, sees: Sees) -> bool {
        !self.aux && matches!(sees, Sees::AuxInEcx | Sees::AuxInEax)
    }

    /// A clock of the guest's own is offset; one that lies between two readings of the host's is
    /// the host's.
    fn clock(&self, run: &Run) -> Seen {
        let seen = run.regs.rdx << 32 | run.regs.rax & 0xFFFF_FFFF;
        let is_host = (self.tsc.0..=self.tsc.1).contains(&seen);
        Seen {
            what: CLOCK.to_owned(),
            value: format!("{seen:#x}"),
            own: "the host's with an offset".to_owned(),
            host: Some(format!("{:#x} to {:#x}", self.tsc.0, self.tsc.1)),
            whose: if is_host { Whose::Host } else { Whose::Own },
        }
    }

    fn values(&self, row: &Instruction, context: Context, run: &Run) -> Option<Values> {
        let (sees, native) = (row.sees, self.shown(row.sees));
        let rax = run.regs.rax;
        let of = |field: fn(&Native) -> u64| native.map(|native| u128::from(field(native)));
        let own_selector = |selector: u16| if context.mode == Mode::Real { 0 } else { selector };
        let (what, seen, own, host) = match sees {
            Sees::Nothing | Sees::Tsc | Sees::Answer => return None,
            Sees::Gdtr | Sees::Idtr => return self.table(sees, context, run),
            Sees::Features => return Some(self.features(run)),
            Sees::Ldtr => {
                ("LDTR", rax & 0xFFFF, own_selector(ground::LOCAL).into(), of(|n| n.ldtr & 0xFFFF))
            }
            Sees::TaskRegister => {
                ("task register", rax & 0xFFFF, context.task().into(), of(|n| n.task & 0xFFFF))
            }
            Sees::MachineStatus => (
                "machine status word",
                rax & 0xFFFF,
                context.cr0().bits() & 0xFFFF,
                of(|n| n.cr0 & 0xFFFF),
            ),
            Sees::Flags => (
                "interrupt flag, IOPL, NT",
                run.top & SYSTEM_FLAGS,
                0,
                of(|n| n.flags & SYSTEM_FLAGS),
            ),
            Sees::FlagsAfter => (
                "flags afterwards",
                run.flags & SYSTEM_FLAGS,
                own_flags(context, row.pops),
                of(|n| n.flags & SYSTEM_FLAGS),
            ),
            Sees::Cs => ("CS", rax & 0xFFFF, context.code().into(), of(|n| n.cs & 0xFFFF)),
            Sees::Pushed if context.mode == Mode::Long => {
                ("FS", run.top & 0xFFFF, context.data().into(), of(|n| n.fs & 0xFFFF))
            }
            Sees::Pushed => ("CS", run.top & 0xFFFF, context.code().into(), of(|n| n.cs & 0xFFFF)),
            Sees::Rights => ("access rights", rax & RIGHTS, OWN_RIGHTS, of(|n| n.rights & RIGHTS)),
            Sees::Limit => ("limit", rax, ground::LIMITED_LIMIT.into(), of(|n| n.limit)),
            Sees::Verified => return self.verified(run),
            Sees::AuxInEcx => {
                ("TSC_AUX", run.regs.rcx & 0xFFFF_FFFF, self.own_aux(), of(|n| n.aux))
            }
            Sees::AuxInEax => ("TSC_AUX", rax, self.own_aux(), of(|n| n.aux)),
            Sees::Cr0 => ("CR0", rax, context.cr0().bits(), of(|n| n.cr0 & 0xFFFF_FFFF)),
            Sees::Cr3 => ("CR3", rax, context.cpu().cr3, None),
            Sees::Cr4 => ("CR4", rax, self.cr4, None),
            Sees::Dr7 => ("DR7", rax, 0x400, None),
            Sees::ApicBase => ("base of the local APIC", rax & 0xFFFF_FFFF, APIC_BASE, None),
            Sees::Xcr0 => ("XCR0", rax, 1, of(|n| n.xcr0)),
            Sees::FsBase => ("base of FS", rax, FS_BASE.into(), None),
            Sees::Pkru => ("PKRU", rax, 0, of(|n| n.pkru)),
        };
        Some(Values { what, seen: seen.into(), own: own.into(), host })
    }

    fn table(&self, sees: Sees, context: Context, run: &Run) -> Option<Values> {
        let size = if context.mode == Mode::Long { 10 } else { 6 };
        let value = |bytes: &[u8; 16], size: usize| {
            let mut whole = [0; 16];
            whole[..size].copy_from_slice(&bytes[..size]);
            u128::from_le_bytes(whole)
        };
        let native = self.shown(sees);
        let (what, table, host) = match sees {
            Sees::Gdtr => ("GDTR (base, limit)", context.gdt(), native.map(|n| &n.gdtr)),
            _ => ("IDTR (base, limit)", context.idt(), native.map(|n| &n.idtr)),
        };
        let own = u128::from(table.base) << 16 | u128::from(table.limit);
        let host = host.map(|bytes| value(bytes, size));
        Some(Values { what, seen: value(&run.operand, size), own, host })
    }

    fn features(&self, run: &Run) -> Values {
        let value =
            |ecx: u32, edx: u32| u128::from(ecx & !STATE_ECX) << 32 | u128::from(edx & !STATE_EDX);
        Values {
            what: FEATURES,
            seen: value(run.regs.rcx as u32, run.regs.rdx as u32),
            own: value(self.guest_leaf.ecx, self.guest_leaf.edx),
            host: Some(value(self.host_leaf.ecx, self.host_leaf.edx)),
        }
    }

    /// VERR and VERW are asked of segments that the guest may use, and the host's programs not.
    fn verified(&self, run: &Run) -> Option<Values> {
        let host = self.native.map(|native| u128::from(native.readable | native.writable));
        Some(Values { what: "may be used", seen: u128::from(run.flags & ZF != 0), own: 1, host })
    }

    fn own_aux(&self) -> u64 {
        if self.aux { TSC_AUX.into() } else { 0 }
    }
}

/// What LAR gives of the guest's descriptor LIMITED: data, writable, accessed, DPL 3, 32-bit.
const OWN_RIGHTS: u64 = 0x0040_F300;

/// What POPF and IRET leave of the flags that they are given: ring 0 gets what it asks for, another
/// ring neither IF nor IOPL (Intel SDM Vol. 2B, POPF, table 4-16).
fn own_flags(context: Context, pops: Pops) -> u64 {
    match pops {
        _ if context.ring > 0 => 0,
        Pops::Flags => 1 << 9 | 3 << 12,
        _ => 1 << 9,
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::CONTEXTS;
    use super::super::lab::{Counts, End};
    use super::super::table::INSTRUCTIONS;
    use super::*;
    use crate::x86::Regs;

    /// Whose it is that an instruction showed in ring 3 of long mode, in RAX and ECX.
    fn whose(name: &str, value: u64, native: Option<&Native>, umip: bool) -> Whose {
        let leaf = Leaf::default();
        let sight = Sight {
            native,
            host_leaf: leaf,
            guest_leaf: leaf,
            tsc: (0, 0),
            aux: false,
            cr4: 0,
            umip,
        };
        let run = Run {
            end: End::Finished,
            regs: Regs { rax: value, rcx: value, ..Default::default() },
            flags: 0,
            top: 0,
            operand: [0; 16],
            start: 0,
            counts: Counts::default(),
        };
        let row = INSTRUCTIONS.iter().find(|row| row.name == name).unwrap();
        let context = CONTEXTS.iter().find(|context| context.name == "long/3").unwrap();
        sight.judge(row, *context, &run).unwrap().whose
    }

    #[test]
    fn what_cannot_be_compared_is_nobodys() {
        let host = Native { rights: 0x40_F500, task: 0x40, ..Native::default() };
        assert_eq!(whose("lar", 0x40_F500, Some(&host), false), Whose::Host);
        assert_eq!(whose("lar", 0x40_F500, None, false), Whose::Unknown);
        assert_eq!(whose("lar", OWN_RIGHTS, None, false), Whose::Own);
        // What a kernel with UMIP shows is no register of the host's.
        assert_eq!(whose("str", 0x40, Some(&host), false), Whose::Host);
        assert_eq!(whose("str", 0x40, Some(&host), true), Whose::Unknown);
    }

    #[test]
    fn a_register_that_nobody_set_is_not_the_guests() {
        let on = |cpu| Native { aux: cpu, ..Native::default() };
        assert_eq!(whose("rdpid", 1, Some(&on(1)), false), Whose::Host);
        assert_eq!(whose("rdpid", 0, Some(&on(0)), false), Whose::Zero);
    }
}

//! What the audit knows of an instruction: one row of its table (`table`). Plain data; knows no KVM.

use super::context::{Context, Mode};

/// Which way an instruction is sensitive (Popek and Goldberg, 1974, "Formal requirements for
/// virtualizable third generation architectures").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sensitive {
    /// Not: it does the same in every mode and wherever the guest lies.
    Innocuous,
    /// Its result depends on the processor's mode or on a register of the system's.
    Behaviour,
    /// It changes the processor's mode or a resource of the system's.
    Control,
    /// Both.
    Both,
}

impl Sensitive {
    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Innocuous => "innocuous",
            Self::Behaviour => "behaviour",
            Self::Control => "control",
            Self::Both => "behaviour and control",
        }
    }
}

/// Who may execute it, by the manuals (Intel SDM Vol. 2, "Exceptions" of each instruction), with
/// an I/O privilege level of 0 and no I/O permission bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Everybody.
    Nothing,
    /// Ring 0; else #GP.
    Ring0,
    /// Ring 0; else #UD.
    Ring0OrUndefined,
    /// Protected or long mode; else #UD.
    Protected,
    /// Both of the last two.
    ProtectedRing0,
    /// A ring that the I/O privilege level lets; else #GP.
    Iopl,
    /// The same, in virtual-8086 mode only.
    IoplInVirtual8086,
    /// What no guest here has: #UD.
    Absent,
    /// It depends on the processor: nothing is claimed.
    Processor,
    /// The same in ring 0; elsewhere an exception, but which one depends on the processor.
    ProcessorRing0,
    /// Ring 0, else #GP; in long mode the same as the last.
    LegacyRing0,
    /// The same in ring 0; elsewhere #UD.
    ProcessorRing0OrUndefined,
}

/// What it does where it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Goes on behind it.
    Run,
    /// Goes through the gate of a vector.
    Gate(u8),
    /// Goes to ring 0 by registers that name the place.
    Land,
}

/// What goes into a register before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Whatever is there.
    None,
    /// This.
    Value(u32),
    /// CR0 of the guest as it is.
    Cr0,
    /// CR3 as it is.
    Cr3,
    /// CR4 as it is.
    Cr4,
    /// The address behind it.
    Next,
}

/// What lies on the stack for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pops {
    /// Nothing of interest.
    Nothing,
    /// Flags with everything on that a kernel may ask for: IF, and IOPL 3.
    Flags,
    /// A selector.
    Selector(u16),
    /// The address behind it and its CS.
    FarReturn,
    /// The same with flags (IF on), and in long mode with a stack.
    InterruptReturn,
}

/// What lies in memory where its operand points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Zeroes.
    Zero,
    /// The address behind it and its CS.
    FarPointer,
    /// A selector of a call gate.
    CallGate,
    /// GDTR as it is.
    Gdt,
    /// IDTR as it is.
    Idt,
}

/// What a program learns from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named after the registers
pub enum Sees {
    Nothing,
    Gdtr,
    Idtr,
    Ldtr,
    TaskRegister,
    /// The low half of CR0.
    MachineStatus,
    /// The flags on the stack.
    Flags,
    /// The flags that are there afterwards.
    FlagsAfter,
    /// CS, in AX.
    Cs,
    /// CS, or in long mode FS, on the stack.
    Pushed,
    /// What LAR gives.
    Rights,
    /// What LSL gives.
    Limit,
    /// The zero flag.
    Verified,
    Tsc,
    /// TSC_AUX, in ECX.
    AuxInEcx,
    /// TSC_AUX, in EAX.
    AuxInEax,
    Cr0,
    Cr3,
    Cr4,
    Dr7,
    ApicBase,
    Xcr0,
    FsBase,
    Pkru,
    /// The feature bits of leaf 1.
    Features,
    /// The answer of a hypervisor.
    Answer,
}

/// An output register of CPUID in which a feature shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    A,
    /// EBX.
    B,
    /// ECX.
    C,
    /// EDX.
    D,
}

/// A feature of the processor: where CPUID shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Leaf.
    pub leaf: u32,
    /// Sub-leaf.
    pub sub_leaf: u32,
    /// Register.
    pub register: Register,
    /// Bit.
    pub bit: u32,
    /// Its name.
    pub name: &'static str,
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    /// Its name, with what tells it from others of the same mnemonic.
    pub name: &'static str,
    /// Its bytes in 16-bit, 32-bit and 64-bit code; none where it does not exist. An operand in
    /// memory is at DS:BX, DS:EDI, RDI.
    pub bytes: [&'static [u8]; 3],
    /// Who may execute it.
    pub needs: Needs,
    /// What it does then.
    pub does: Does,
    /// Why a monitor must see it.
    pub sensitive: Sensitive,
    /// Is it one of those that Robin and Irvine found (USENIX Security 2000)?
    pub seventeen: bool,
    /// EAX, ECX and EDX.
    pub inputs: [Input; 3],
    /// The stack.
    pub pops: Pops,
    /// Memory.
    pub operand: Operand,
    /// What it tells.
    pub sees: Sees,
    /// What the processor must have.
    pub feature: Option<Feature>,
    /// Bits of CR4 that switch it on.
    pub cr4: u64,
    /// MSRs that it reads, and what they are to hold.
    pub msrs: &'static [(u32, u64)],
    /// It cannot be done again from where it leaves the processor: its time is not taken.
    pub once: bool,
    /// The exits that VT-x and AMD-V have for it (SDM Vol. 3D, appendix C; APM Vol. 2, appendix C).
    pub exits: &'static str,
    /// What it does, for a student.
    pub about: &'static str,
    /// Why a monitor must see it, or need not.
    pub why: &'static str,
}

/// What the manuals say happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It runs.
    Run,
    /// It goes through the gate of a vector.
    Gate(u8),
    /// It goes to ring 0.
    Land,
    /// It raises this exception.
    Fault(u8),
    /// It raises an exception; which one, they leave to the processor.
    SomeFault,
    /// They leave it to the processor.
    Processor,
}

/// #UD.
pub const INVALID_OPCODE: u8 = 6;
/// #GP.
pub const GENERAL_PROTECTION: u8 = 13;

impl Instruction {
    /// Its bytes in the code of a context; `None` where it does not exist.
    pub fn bytes_in(&self, context: Context) -> Option<&'static [u8]> {
        let bytes = match context.width() {
            2 => self.bytes[0],
            4 => self.bytes[1],
            _ => self.bytes[2],
        };
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Does it trap wherever a program runs, in ring 3 (and so is *privileged*)?
    pub fn is_privileged(&self) -> bool {
        match self.needs {
            Needs::Nothing | Needs::Protected | Needs::IoplInVirtual8086 | Needs::Processor => {
                false
            }
            Needs::Absent => self.sensitive != Sensitive::Innocuous,
            _ => true,
        }
    }

    /// What they say where the processor does not have it: #UD, but for WBNOINVD, which is WBINVD
    /// with a prefix that older processors ignore.
    pub fn expected_without_feature(&self) -> Expected {
        match self.feature {
            Some(feature) if feature.name == "wbnoinvd" => Expected::Processor,
            _ => Expected::Fault(INVALID_OPCODE),
        }
    }

    /// What the manuals say happens.
    pub fn expected(&self, context: Context) -> Expected {
        let virtual_8086 = context.mode == Mode::Virtual8086;
        let fault = match self.needs {
            Needs::Processor => return Expected::Processor,
            Needs::ProcessorRing0 => return in_ring_0(context),
            Needs::LegacyRing0 if context.is_long() => return in_ring_0(context),
            Needs::Absent => Some(INVALID_OPCODE),
            Needs::Ring0OrUndefined | Needs::ProcessorRing0OrUndefined if context.ring > 0 => {
                Some(INVALID_OPCODE)
            }
            Needs::ProcessorRing0OrUndefined => return Expected::Processor,
            Needs::Protected | Needs::ProtectedRing0 if context.is_8086() => Some(INVALID_OPCODE),
            Needs::Ring0 | Needs::LegacyRing0 | Needs::ProtectedRing0 | Needs::Iopl
                if context.ring > 0 =>
            {
                Some(GENERAL_PROTECTION)
            }
            Needs::IoplInVirtual8086 if virtual_8086 => Some(GENERAL_PROTECTION),
            _ => None,
        };
        match (fault, self.does) {
            (Some(vector), _) => Expected::Fault(vector),
            (None, Does::Run) => Expected::Run,
            (None, Does::Gate(vector)) => Expected::Gate(vector),
            (None, Does::Land) => Expected::Land,
        }
    }
}

/// What only ring 0 may, where the processor has it.
fn in_ring_0(context: Context) -> Expected {
    if context.ring > 0 { Expected::SomeFault } else { Expected::Processor }
}

/// An exception's name (Intel SDM Vol. 3A, table 6-1).
pub fn exception(vector: u8) -> String {
    const NAMES: [&str; 22] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS",
        "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    ];
    NAMES.get(usize::from(vector)).map_or_else(|| format!("vector {vector}"), |&name| name.into())
}

#[cfg(test)]
mod tests {
    use super::super::context::CONTEXTS;
    use super::super::table::INSTRUCTIONS;
    use super::*;

    fn expected(name: &str, context: &str) -> Expected {
        let row = INSTRUCTIONS.iter().find(|row| row.name == name).unwrap();
        row.expected(*CONTEXTS.iter().find(|it| it.name == context).unwrap())
    }

    #[test]
    fn what_only_ring_0_has_is_an_exception_elsewhere() {
        assert_eq!(expected("clgi", "long/0"), Expected::Processor);
        assert_eq!(expected("clgi", "long/3"), Expected::SomeFault);
        assert_eq!(expected("rdpmc", "long/3"), Expected::SomeFault);
    }

    /// AMD's processors have it outside long mode only (APM Vol. 3, SYSEXIT).
    #[test]
    fn sysexit_is_for_the_processor_to_have_in_long_mode() {
        assert_eq!(expected("sysexit", "prot/0"), Expected::Run);
        assert_eq!(expected("sysexit", "prot/3"), Expected::Fault(GENERAL_PROTECTION));
        assert_eq!(expected("sysexit", "comp/0"), Expected::Processor);
        assert_eq!(expected("sysexit", "long/3"), Expected::SomeFault);
    }
}

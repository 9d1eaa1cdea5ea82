//! The instructions of the audit, a row each: everything that is tried, and everything that
//! `--explain` says comes from here.

use super::ground;
use super::instruction::Sensitive::{Behaviour, Both, Control, Innocuous};
use super::instruction::{
    Does, Feature, Input, Instruction, Needs, Operand, Pops, Register, Sees, Sensitive,
};
use super::program::{FS_BASE_MSR, SYSCALL_MSRS, SYSENTER_MSRS, TSC_AUX_MSR};
use crate::x86::Cr4;

const fn row(
    name: &'static str,
    needs: Needs,
    sensitive: Sensitive,
    bytes: &'static [u8],
) -> Instruction {
    Instruction {
        name,
        needs,
        sensitive,
        bytes: [bytes; 3],
        does: Does::Run,
        seventeen: false,
        inputs: [Input::None; 3],
        pops: Pops::Nothing,
        operand: Operand::Zero,
        sees: Sees::Nothing,
        feature: None,
        cr4: 0,
        msrs: &[],
        once: false,
        exits: "",
        about: "",
        why: "",
    }
}

impl Instruction {
    const fn seventeen(self) -> Self {
        Self { seventeen: true, ..self }
    }
    const fn in_64(self, bytes: &'static [u8]) -> Self {
        Self { bytes: [self.bytes[0], self.bytes[1], bytes], ..self }
    }
    const fn not_64(self) -> Self {
        self.in_64(&[])
    }
    const fn not_16(self) -> Self {
        Self { bytes: [&[], self.bytes[1], self.bytes[2]], ..self }
    }
    const fn only_64(self) -> Self {
        Self { bytes: [&[], &[], self.bytes[2]], ..self }
    }
    const fn does(self, does: Does) -> Self {
        Self { does, once: true, ..self }
    }
    const fn a(self, eax: Input) -> Self {
        Self { inputs: [eax, self.inputs[1], self.inputs[2]], ..self }
    }
    const fn c(self, ecx: Input) -> Self {
        Self { inputs: [self.inputs[0], ecx, self.inputs[2]], ..self }
    }
    const fn d(self, edx: Input) -> Self {
        Self { inputs: [self.inputs[0], self.inputs[1], edx], ..self }
    }
    const fn pops(self, pops: Pops) -> Self {
        Self { pops, ..self }
    }
    const fn operand(self, operand: Operand) -> Self {
        Self { operand, ..self }
    }
    const fn sees(self, sees: Sees) -> Self {
        Self { sees, ..self }
    }
    const fn feature(self, feature: Feature) -> Self {
        Self { feature: Some(feature), ..self }
    }
    const fn cr4(self, cr4: u64) -> Self {
        Self { cr4, ..self }
    }
    const fn msrs(self, msrs: &'static [(u32, u64)]) -> Self {
        Self { msrs, ..self }
    }
    const fn once(self) -> Self {
        Self { once: true, ..self }
    }
    const fn exits(self, exits: &'static str) -> Self {
        Self { exits, ..self }
    }
    const fn says(self, about: &'static str, why: &'static str) -> Self {
        Self { about, why, ..self }
    }
}

const fn feature(leaf: u32, register: Register, bit: u32, name: &'static str) -> Feature {
    Feature { leaf, sub_leaf: 0, register, bit, name }
}

const SEP: Feature = feature(1, Register::D, 11, "sep");
const FXSR: Feature = feature(1, Register::D, 24, "fxsr");
const CX16: Feature = feature(1, Register::C, 13, "cx16");
const POPCNT: Feature = feature(1, Register::C, 23, "popcnt");
const XSAVE: Feature = feature(1, Register::C, 26, "xsave");
const XSAVES: Feature =
    Feature { leaf: 0xD, sub_leaf: 1, register: Register::A, bit: 3, name: "xsaves" };
const FSGSBASE: Feature = feature(7, Register::B, 0, "fsgsbase");
const INVPCID: Feature = feature(7, Register::B, 10, "invpcid");
const SMAP: Feature = feature(7, Register::B, 20, "smap");
const PKU: Feature = feature(7, Register::C, 3, "pku");
const RDPID: Feature = feature(7, Register::C, 22, "rdpid");
const RDTSCP: Feature = feature(0x8000_0001, Register::D, 27, "rdtscp");
const SYSCALL: Feature = feature(0x8000_0001, Register::D, 11, "syscall");
const MONITORX: Feature = feature(0x8000_0001, Register::C, 29, "monitorx");
const INVLPGB: Feature = feature(0x8000_0008, Register::B, 3, "invlpgb");
const RDPRU: Feature = feature(0x8000_0008, Register::B, 4, "rdpru");
const WBNOINVD: Feature = feature(0x8000_0008, Register::B, 9, "wbnoinvd");

const CR4_OSFXSR: u64 = Cr4::OSFXSR.bits();
const CR4_FSGSBASE: u64 = Cr4::FSGSBASE.bits();
const CR4_OSXSAVE: u64 = Cr4::OSXSAVE.bits();
const CR4_PKE: u64 = 1 << 22;

/// A port that nobody listens to.
const PORT: u32 = 0x80;
const APIC_BASE: u32 = 0x1B;
const PAT: u32 = 0x277;
/// Half of PAT's value at reset (Intel SDM Vol. 3A 12.12.4).
const PAT_HALF: u32 = 0x0007_0406;
const DR7_RESET: u32 = 0x400;
const DR6_RESET: u32 = 0xFFFF_0FF0;
/// A hypercall of KVM's that does nothing (KVM_HC_VAPIC_POLL_IRQ).
const POLL_IRQ: u32 = 1;
const RING_3: u16 = 3;

const MSR_EXIT: &str = "VT-x: RDMSR (31), WRMSR (32), by a bitmap; AMD-V: MSR (0x7C), by a bitmap";
const IO_EXIT: &str = "VT-x: I/O (30); AMD-V: IOIO (0x7B); by a bitmap";
const NO_EXIT: &str = "none: the hardware holds a copy of the guest's own";
const BY_SOFTWARE: &str = "none: the hypervisor loads the guest's before it enters the guest";
const NONE: &str = "none";

/// Every instruction, in the order of the tables.
#[rustfmt::skip]
pub const INSTRUCTIONS: &[Instruction] = &[
    // Robin and Irvine's seventeen: sensitive, and yet they do not trap in ring 3.
    row("sgdt", Needs::Nothing, Behaviour, &[0x0F, 0x01, 0x07]).sees(Sees::Gdtr).seventeen().exits("VT-x: GDTR/IDTR access (46), only if asked for; AMD-V: GDTR read (0x67), if asked for")
        .says("Stores where the global descriptor table lies, and its length.",
              "There is one GDTR a processor. A kernel without ring 0 reads the monitor's, not the one that it believes it has loaded: it learns that it is a guest, and where the host's table lies. UMIP makes it trap in rings 1 to 3."),
    row("sidt", Needs::Nothing, Behaviour, &[0x0F, 0x01, 0x0F]).sees(Sees::Idtr).seventeen().exits("VT-x: GDTR/IDTR access (46), only if asked for; AMD-V: IDTR read (0x66), if asked for")
        .says("Stores where the interrupt descriptor table lies, and its length.",
              "As SGDT. It was the famous test for a virtual machine (\"red pill\", 2004): a host's table lies elsewhere than a kernel's own."),
    row("sldt", Needs::Protected, Behaviour, &[0x0F, 0x00, 0xC0]).sees(Sees::Ldtr).seventeen().exits("VT-x: LDTR/TR access (47), only if asked for; AMD-V: LDTR read (0x68), if asked for")
        .says("Stores the selector of the local descriptor table.", "The register is the host's unless the hardware keeps one for the guest."),
    row("smsw", Needs::Nothing, Behaviour, &[0x0F, 0x01, 0xE0]).sees(Sees::MachineStatus).seventeen().exits("VT-x: none, but the bits that the hypervisor owns are shown as it wants; AMD-V: CR0 read (0x00)")
        .says("Stores the machine status word: the low half of CR0.", "CR0 says whether protection, paging and the FPU are on. MOV from CR0 traps in ring 3; this, kept for the 80286, does not: without hardware's help a guest in ring 3 sees the host's CR0."),
    row("pushf", Needs::IoplInVirtual8086, Behaviour, &[0x9C]).sees(Sees::Flags).seventeen().exits("VT-x: none; AMD-V: PUSHF (0x70), if asked for")
        .says("Pushes the flags, among them the interrupt flag and the I/O privilege level.", "A kernel that has interrupts off by its virtual flag reads the real one, which is on."),
    row("popf", Needs::IoplInVirtual8086, Both, &[0x9D]).pops(Pops::Flags).sees(Sees::FlagsAfter).seventeen().exits("VT-x: none; AMD-V: POPF (0x71), if asked for")
        .says("Pops the flags.", "In ring 3 it leaves the interrupt flag as it is and says nothing: a guest kernel that turns interrupts on or off believes that it did, and the monitor is not told."),
    row("lar", Needs::Protected, Behaviour, &[0x0F, 0x02, 0xC0]).a(Input::Value((ground::LIMITED | RING_3) as u32)).sees(Sees::Rights).seventeen().exits(NONE)
        .says("Loads the access rights of a segment.", "It reads whichever descriptor table the processor really uses, and what it allows depends on the real ring."),
    row("lsl", Needs::Protected, Behaviour, &[0x0F, 0x03, 0xC0]).a(Input::Value((ground::LIMITED | RING_3) as u32)).sees(Sees::Limit).seventeen().exits(NONE)
        .says("Loads the limit of a segment.", "As LAR. Linux keeps the number of the processor in the limit of a segment of its table: LSL on the real table tells a guest on which of the host's processors it runs."),
    row("verr", Needs::Protected, Behaviour, &[0x0F, 0x00, 0xE0]).a(Input::Value((ground::BEYOND | RING_3) as u32)).sees(Sees::Verified).seventeen().exits(NONE)
        .says("Tells by the zero flag whether a segment may be read from this ring.", "As LAR: it answers for the real table and the real ring."),
    row("verw", Needs::Protected, Behaviour, &[0x0F, 0x00, 0xE8]).a(Input::Value((ground::LIMITED | RING_3) as u32)).sees(Sees::Verified).seventeen().exits(NONE)
        .says("Tells by the zero flag whether a segment may be written from this ring.", "As LAR: it answers for the real table and the real ring."),
    row("push", Needs::Nothing, Behaviour, &[0x0E]).in_64(&[0x0F, 0xA0]).sees(Sees::Pushed).seventeen().exits(NONE)
        .says("Pushes a segment register: CS, or FS in 64-bit code, where CS has no such instruction.", "The low two bits of CS are the real ring: a kernel that was pushed out of ring 0 sees that it is not there."),
    row("pop", Needs::Nothing, Both, &[0x0F, 0xA1]).pops(Pops::Selector(ground::BEYOND | RING_3)).seventeen().exits(NONE)
        .says("Pops a segment register (FS).", "It loads from the real descriptor table and checks against the real ring. Where that is the host's, the guest gets the host's segment, or a fault for one that its own table has."),
    row("call far", Needs::Nothing, Both, &[0xFF, 0x1F]).operand(Operand::FarPointer).seventeen().exits(NONE)
        .says("Calls code in another segment.", "It checks privilege against the real ring, and pushes a CS that shows it."),
    row("jmp far", Needs::Nothing, Both, &[0xFF, 0x2F]).operand(Operand::FarPointer).seventeen().exits(NONE)
        .says("Jumps to code in another segment.", "It checks privilege against the real ring and the real table."),
    row("int n", Needs::IoplInVirtual8086, Both, &[0xCD, ground::GATE]).does(Does::Gate(ground::GATE)).seventeen().exits("VT-x: none; AMD-V: INTn (0x75), if asked for")
        .says("Goes through a gate of the interrupt descriptor table, as system calls once did.", "Which gate, and whether it may, is for the real table and the real ring: without hardware's help the monitor has to be the first to get it."),
    row("ret far", Needs::Nothing, Both, &[0xCB]).pops(Pops::FarReturn).seventeen().exits(NONE)
        .says("Returns to code in another segment.", "It can only go to the same ring or to one with less privilege: what is right for a kernel in ring 0 is a fault, or another thing, elsewhere."),
    row("str", Needs::Protected, Behaviour, &[0x0F, 0x00, 0xC8]).sees(Sees::TaskRegister).seventeen().exits("VT-x: LDTR/TR access (47), only if asked for; AMD-V: TR read (0x69), if asked for")
        .says("Stores the selector of the task register.", "The task register is the host's unless the hardware keeps one for the guest; a guest kernel reads a value that it never loaded."),
    row("mov r, cs", Needs::Nothing, Behaviour, &[0x8C, 0xC8]).sees(Sees::Cs).seventeen().exits(NONE)
        .says("Reads a segment register (CS).", "Its low two bits are the real ring."),
    row("mov sreg, r", Needs::Nothing, Both, &[0x8E, 0xE0]).a(Input::Value((ground::BEYOND | RING_3) as u32)).seventeen().exits(NONE)
        .says("Loads a segment register (FS).", "As POP: from the real table, checked against the real ring."),
    // The others that are sensitive and unprivileged: most came later.
    row("call gate", Needs::Protected, Both, &[0xFF, 0x1F]).not_16().operand(Operand::CallGate).does(Does::Land).exits(NONE)
        .says("Calls ring 0 through a call gate of the descriptor table.", "The gate is in the real table: without hardware's help a guest kernel's gates do not exist."),
    row("iret", Needs::IoplInVirtual8086, Both, &[0xCF]).in_64(&[0x48, 0xCF]).pops(Pops::InterruptReturn).sees(Sees::FlagsAfter).exits("VT-x: none; AMD-V: IRET (0x74), if asked for")
        .says("Returns from an interrupt, and restores the flags.", "As POPF: outside ring 0 it leaves the interrupt flag as it is, and says nothing."),
    row("cpuid", Needs::Nothing, Behaviour, &[0x0F, 0xA2]).a(Input::Value(1)).sees(Sees::Features).exits("VT-x: CPUID (10), always; AMD-V: CPUID (0x72)")
        .says("Tells what the processor is and can do.", "It never traps by itself (but by CPUID faulting, on some): without it a guest is shown the host's processor, and what was masked."),
    row("rdtsc", Needs::Nothing, Behaviour, &[0x0F, 0x31]).sees(Sees::Tsc).exits("VT-x: RDTSC (16), only if asked for; AMD-V: RDTSC (0x6E), if asked for; both can add an offset instead")
        .says("Reads the time-stamp counter.", "A clock of the host's: it shows when the guest did not run, and how long the host is up. CR4.TSD makes it trap in ring 3; the hardware can add an offset, so that each guest has a clock of its own."),
    row("rdtscp", Needs::Nothing, Behaviour, &[0x0F, 0x01, 0xF9]).sees(Sees::AuxInEcx).feature(RDTSCP).msrs(TSC_AUX_MSR).exits("VT-x: RDTSCP (51), only if asked for; AMD-V: RDTSCP (0x87), if asked for")
        .says("Reads the time-stamp counter and TSC_AUX, where kernels keep the number of the processor.", "TSC_AUX is a register of the processor's: if nobody loads the guest's, it shows on which of the host's processors the guest runs."),
    row("rdpid", Needs::Nothing, Behaviour, &[0xF3, 0x0F, 0xC7, 0xF8]).sees(Sees::AuxInEax).feature(RDPID).msrs(TSC_AUX_MSR).exits(BY_SOFTWARE)
        .says("Reads TSC_AUX.", "As RDTSCP."),
    row("xgetbv", Needs::Nothing, Behaviour, &[0x0F, 0x01, 0xD0]).c(Input::Value(0)).sees(Sees::Xcr0).feature(XSAVE).cr4(CR4_OSXSAVE).exits(BY_SOFTWARE)
        .says("Reads XCR0: which parts of the extended state are on.", "It is the host's unless somebody loads the guest's."),
    row("arpl", Needs::Protected, Innocuous, &[0x63, 0xC0]).not_64().exits(NONE)
        .says("Raises the ring in a selector to that of another one.", "It works on its operands alone."),
    row("syscall", Needs::Processor, Both, &[0x0F, 0x05]).in_64(&[0x0F, 0x05]).feature(SYSCALL).msrs(SYSCALL_MSRS).does(Does::Land).exits("none: the MSRs that it reads are the guest's own")
        .says("Goes to the kernel, at the address in LSTAR.", "It goes to ring 0 of the processor, and that has to be the guest's kernel. Where guest ring 0 is not ring 0, the monitor gets it first."),
    row("sysenter", Needs::Processor, Both, &[0x0F, 0x34]).feature(SEP).msrs(SYSENTER_MSRS).does(Does::Land).exits("none: the MSRs that it reads are the guest's own")
        .says("Goes to the kernel, at the address in SYSENTER_EIP.", "As SYSCALL."),
    row("int3", Needs::Nothing, Both, &[0xCC]).does(Does::Gate(3)).exits("VT-x: exception (0), only if asked for; AMD-V: #BP (0x43), if asked for")
        .says("Goes through the gate of vector 3: breakpoints.", "As INT n."),
    row("into", Needs::Nothing, Both, &[0xCE]).not_64().does(Does::Gate(4)).exits("VT-x: exception (0), only if asked for; AMD-V: #OF (0x44), if asked for")
        .says("Goes through the gate of vector 4 if the overflow flag is set, as it is here.", "As INT n."),
    row("vmcall", Needs::Processor, Control, &[0x0F, 0x01, 0xC1]).a(Input::Value(POLL_IRQ)).sees(Sees::Answer).exits("VT-x: VMCALL (18), always; AMD-V: #UD, which KVM repairs")
        .says("Calls the hypervisor (VT-x).", "It is there to trap. Where it does not trap into this KVM, a guest speaks to whatever hypervisor is below."),
    row("vmmcall", Needs::Processor, Control, &[0x0F, 0x01, 0xD9]).a(Input::Value(POLL_IRQ)).sees(Sees::Answer).exits("AMD-V: VMMCALL (0x81); VT-x: #UD, which KVM repairs")
        .says("Calls the hypervisor (AMD-V).", "It is there to trap. Where it does not trap into this KVM, a guest speaks to whatever hypervisor is below."),
    row("lfs", Needs::Nothing, Both, &[0x0F, 0xB4, 0x07]).operand(Operand::FarPointer).exits(NONE)
        .says("Loads a segment register (FS) and an offset from memory; LDS, LES, LSS and LGS do the same.", "As MOV to a segment register, which it does beside a MOV: from the real table, checked against the real ring."),
    row("int1", Needs::Nothing, Both, &[0xF1]).does(Does::Gate(1)).exits("VT-x: exception (0), only if asked for; AMD-V: ICEBP (0x88), if asked for")
        .says("Goes through the gate of vector 1, as a debug exception does.", "As INT n; the gate's own privilege level is not looked at."),
    row("rdpru", Needs::Nothing, Behaviour, &[0x0F, 0x01, 0xFD]).c(Input::Value(0)).feature(RDPRU).exits("AMD-V: RDPRU (0x8E), if asked for; VT-x: none, it is undefined there")
        .says("Reads a counter of the processor's (here MPERF) in any ring (AMD).", "The counters are the host's: they run with its clock and its load. CR4.TSD makes it trap."),
    row("monitorx", Needs::Nothing, Control, &[0x0F, 0x01, 0xFA]).c(Input::Value(0)).d(Input::Value(0)).feature(MONITORX).exits("AMD-V: MONITOR (0x8A), if asked for; VT-x: none, it is undefined there")
        .says("Sets the address that MWAITX waits for, in any ring (AMD).", "As MWAITX."),
    row("mwaitx", Needs::Nothing, Control, &[0x0F, 0x01, 0xFB]).a(Input::Value(0)).c(Input::Value(0)).feature(MONITORX).exits("AMD-V: MWAIT (0x8B), if asked for; VT-x: none, it is undefined there")
        .says("Stops the processor until an address is written, in any ring (AMD). Here no address is set, so that it goes on at once.", "The processor is the host's to stop: a guest's program that does it directly keeps it from others as long as it likes, or until an interrupt."),
    // Privileged: they trap outside ring 0, as Popek and Goldberg want it.
    row("lgdt", Needs::Ring0, Control, &[0x0F, 0x01, 0x17]).operand(Operand::Gdt).exits("VT-x: GDTR/IDTR access (46), only if asked for; AMD-V: GDTR write (0x6B), if asked for")
        .says("Loads the address of the global descriptor table.", "It decides what every selector means."),
    row("lidt", Needs::Ring0, Control, &[0x0F, 0x01, 0x1F]).operand(Operand::Idt).exits("VT-x: GDTR/IDTR access (46), only if asked for; AMD-V: IDTR write (0x6A), if asked for")
        .says("Loads the address of the interrupt descriptor table.", "It decides who gets interrupts and exceptions."),
    row("lldt", Needs::ProtectedRing0, Control, &[0x0F, 0x00, 0xD0]).a(Input::Value(ground::LOCAL as u32)).exits("VT-x: LDTR/TR access (47), only if asked for; AMD-V: LDTR write (0x6C), if asked for")
        .says("Loads the local descriptor table register.", "As LGDT."),
    row("ltr", Needs::ProtectedRing0, Control, &[0x0F, 0x00, 0xD8]).a(Input::Value(ground::SPARE_TASK as u32)).once().exits("VT-x: LDTR/TR access (47), only if asked for; AMD-V: TR write (0x6D), if asked for")
        .says("Loads the task register.", "The task state segment holds the stacks of ring 0 and the I/O permissions."),
    row("lmsw", Needs::Ring0, Control, &[0x0F, 0x01, 0xF0]).a(Input::Cr0).exits("VT-x: CR access (28), for the bits that the hypervisor owns; AMD-V: CR0 write (0x10), if asked for")
        .says("Loads the low four bits of CR0.", "It can turn protected mode on."),
    row("clts", Needs::Ring0, Control, &[0x0F, 0x06]).exits("VT-x: CR access (28), for the bits that the hypervisor owns; AMD-V: CR0 write (0x10), if asked for")
        .says("Clears CR0.TS, by which kernels switch the FPU lazily.", "It changes CR0."),
    row("mov r, cr0", Needs::Ring0, Behaviour, &[0x0F, 0x20, 0xC0]).sees(Sees::Cr0).exits("VT-x: none: the bits that the hypervisor owns are shown as it wants; AMD-V: CR0 read (0x00), if asked for")
        .says("Reads CR0.", "It tells the real mode. It traps in ring 3, SMSW does not: an oversight of 1982 that cost twenty years."),
    row("mov cr0, r", Needs::Ring0, Control, &[0x0F, 0x22, 0xC0]).a(Input::Cr0).exits("VT-x: CR access (28), for the bits that the hypervisor owns; AMD-V: CR0 write (0x10), if asked for")
        .says("Writes CR0: protection, paging, caches.", "It changes the mode of the processor."),
    row("mov r, cr2", Needs::Ring0, Behaviour, &[0x0F, 0x20, 0xD0]).exits("VT-x: none; AMD-V: CR2 read (0x02), if asked for")
        .says("Reads the address of the last page fault.", "With shadow page tables the processor's own is that of a fault of the monitor's."),
    row("mov cr2, r", Needs::Ring0, Control, &[0x0F, 0x22, 0xD0]).a(Input::Value(0)).exits("VT-x: none; AMD-V: CR2 write (0x12), if asked for")
        .says("Writes the address of the last page fault.", "The guest's own fault handler reads it: another's value would send it astray."),
    row("mov r, cr3", Needs::Ring0, Behaviour, &[0x0F, 0x20, 0xD8]).sees(Sees::Cr3).exits("VT-x: CR access (28), without nested paging; AMD-V: CR3 read (0x03), likewise")
        .says("Reads the address of the page tables.", "It is a physical address: with shadow page tables not the guest's. Nested paging (EPT, NPT) gives the guest its own."),
    row("mov cr3, r", Needs::Ring0, Control, &[0x0F, 0x22, 0xD8]).a(Input::Cr3).exits("VT-x: CR access (28), without nested paging; AMD-V: CR3 write (0x13), likewise")
        .says("Loads the address of the page tables.", "It decides which memory there is. With nested paging it needs no exit."),
    row("mov r, cr4", Needs::Ring0, Behaviour, &[0x0F, 0x20, 0xE0]).sees(Sees::Cr4).exits("VT-x: none: the bits that the hypervisor owns are shown as it wants; AMD-V: CR4 read (0x04), if asked for")
        .says("Reads CR4.", "It tells which features the kernel has switched on."),
    row("mov cr4, r", Needs::Ring0, Control, &[0x0F, 0x22, 0xE0]).a(Input::Cr4).exits("VT-x: CR access (28), for the bits that the hypervisor owns; AMD-V: CR4 write (0x14), if asked for")
        .says("Writes CR4.", "It switches features on and off, among them UMIP and TSD."),
    row("mov r, cr8", Needs::Ring0, Behaviour, &[0x44, 0x0F, 0x20, 0xC0]).only_64().exits("VT-x: CR access (28), if asked for; AMD-V: CR8 read (0x08), if asked for")
        .says("Reads the task priority of the local APIC.", "It is the interrupt controller's."),
    row("mov cr8, r", Needs::Ring0, Control, &[0x44, 0x0F, 0x22, 0xC0]).only_64().a(Input::Value(0)).exits("VT-x: CR access (28), if asked for; AMD-V: CR8 write (0x18), if asked for")
        .says("Writes the task priority of the local APIC.", "It holds interrupts back."),
    row("mov r, dr7", Needs::Ring0, Behaviour, &[0x0F, 0x21, 0xF8]).sees(Sees::Dr7).exits("VT-x: MOV DR (29), if asked for; AMD-V: DR7 read (0x27), if asked for")
        .says("Reads the debug control register.", "A debugger of the host's would show."),
    row("mov dr7, r", Needs::Ring0, Control, &[0x0F, 0x23, 0xF8]).a(Input::Value(DR7_RESET)).exits("VT-x: MOV DR (29), if asked for; AMD-V: DR7 write (0x37), if asked for")
        .says("Writes the debug control register.", "It sets breakpoints, on whatever runs."),
    row("mov r, dr0", Needs::Ring0, Behaviour, &[0x0F, 0x21, 0xC0]).exits("VT-x: MOV DR (29), if asked for; AMD-V: DR0 read (0x20), if asked for")
        .says("Reads the address of a breakpoint; DR1 to DR3 are the same.", "As DR7."),
    row("mov dr0, r", Needs::Ring0, Control, &[0x0F, 0x23, 0xC0]).a(Input::Value(0)).exits("VT-x: MOV DR (29), if asked for; AMD-V: DR0 write (0x30), if asked for")
        .says("Writes the address of a breakpoint; DR1 to DR3 are the same.", "As DR7."),
    row("mov r, dr6", Needs::Ring0, Behaviour, &[0x0F, 0x21, 0xF0]).exits("VT-x: MOV DR (29), if asked for; AMD-V: DR6 read (0x26), if asked for")
        .says("Reads the debug status.", "As DR7."),
    row("mov dr6, r", Needs::Ring0, Control, &[0x0F, 0x23, 0xF0]).a(Input::Value(DR6_RESET)).exits("VT-x: MOV DR (29), if asked for; AMD-V: DR6 write (0x36), if asked for")
        .says("Writes the debug status.", "As DR7."),
    row("rdmsr", Needs::Ring0, Behaviour, &[0x0F, 0x32]).c(Input::Value(APIC_BASE)).sees(Sees::ApicBase).exits(MSR_EXIT)
        .says("Reads a model-specific register (here the base of the local APIC).", "They hold all that is the machine's: see the table of MSRs."),
    row("wrmsr", Needs::Ring0, Control, &[0x0F, 0x30]).c(Input::Value(PAT)).a(Input::Value(PAT_HALF)).d(Input::Value(PAT_HALF)).exits(MSR_EXIT)
        .says("Writes a model-specific register (here the page attribute table, with its value at reset).", "They hold all that is the machine's."),
    row("rdpmc", Needs::ProcessorRing0, Behaviour, &[0x0F, 0x33]).c(Input::Value(0)).exits("VT-x: RDPMC (15), if asked for; AMD-V: RDPMC (0x6F)")
        .says("Reads a performance counter; outside ring 0 only if CR4.PCE lets it.", "It counts what the host did too: side channels live on it."),
    row("invd", Needs::Ring0, Control, &[0x0F, 0x08]).exits("VT-x: INVD (13), always; AMD-V: INVD (0x76)")
        .says("Throws the caches away without writing them back.", "On the real caches it would lose the host's data."),
    row("wbinvd", Needs::Ring0, Control, &[0x0F, 0x09]).exits("VT-x: WBINVD (54), only if asked for; AMD-V: WBINVD (0x89), if asked for")
        .says("Writes the caches back and empties them.", "It slows the host down; harmless otherwise."),
    row("wbnoinvd", Needs::Ring0, Control, &[0xF3, 0x0F, 0x09]).feature(WBNOINVD).exits("as WBINVD")
        .says("Writes the caches back.", "As WBINVD."),
    row("invlpg", Needs::Ring0, Control, &[0x0F, 0x01, 0x3F]).exits("VT-x: INVLPG (14), only without nested paging; AMD-V: INVLPG (0x79), likewise")
        .says("Throws away what the TLB holds of an address.", "With shadow page tables the monitor has to know; with nested paging it need not."),
    row("invpcid", Needs::Ring0, Control, &[0x66, 0x0F, 0x38, 0x82, 0x07]).a(Input::Value(2)).feature(INVPCID).exits("VT-x: INVPCID (58); AMD-V: INVPCID (0xA2); if asked for")
        .says("Throws away what the TLB holds of a process.", "As INVLPG."),
    row("invlpgb", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xFE]).a(Input::Value(0)).c(Input::Value(0)).d(Input::Value(0)).feature(INVLPGB).exits("AMD-V: INVLPGB (0xA0), if asked for, else #UD; VT-x: none, it is undefined there")
        .says("Throws away what the TLBs of all processors hold (AMD).", "As INVLPG, for processors that may be running other guests."),
    row("tlbsync", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xFF]).feature(INVLPGB).exits("AMD-V: TLBSYNC (0xA4), if asked for, else #UD; VT-x: none, it is undefined there")
        .says("Waits for INVLPGB (AMD).", "As INVLPGB."),
    row("hlt", Needs::Ring0, Control, &[0xF4]).exits("VT-x: HLT (12); AMD-V: HLT (0x78)")
        .says("Stops the processor until the next interrupt.", "The processor is the host's to stop."),
    row("monitor", Needs::ProcessorRing0OrUndefined, Control, &[0x0F, 0x01, 0xC8]).c(Input::Value(0)).d(Input::Value(0)).exits("VT-x: MONITOR (39); AMD-V: MONITOR (0x8A)")
        .says("Sets the address that MWAIT waits for.", "As HLT. KVM hides it, unless it is told otherwise."),
    row("mwait", Needs::ProcessorRing0OrUndefined, Control, &[0x0F, 0x01, 0xC9]).a(Input::Value(0)).c(Input::Value(0)).exits("VT-x: MWAIT (36); AMD-V: MWAIT (0x8B)")
        .says("Stops the processor until an address is written.", "As HLT."),
    row("cli", Needs::Iopl, Control, &[0xFA]).exits("none: the hardware holds a flag of the guest's own")
        .says("Turns interrupts off.", "A guest must not turn the host's off. It traps where the I/O privilege level forbids it; POPF, which can do the same, does not."),
    row("sti", Needs::Iopl, Control, &[0xFB]).exits("none: the hardware holds a flag of the guest's own")
        .says("Turns interrupts on.", "As CLI."),
    row("in", Needs::Iopl, Both, &[0xE4, PORT as u8]).exits(IO_EXIT)
        .says("Reads a port.", "Ports are devices: the guest's are made by the monitor."),
    row("out", Needs::Iopl, Control, &[0xE6, PORT as u8]).exits(IO_EXIT)
        .says("Writes a port.", "As IN."),
    row("ins", Needs::Iopl, Both, &[0x6C]).d(Input::Value(PORT)).exits(IO_EXIT)
        .says("Reads a port into memory.", "As IN."),
    row("outs", Needs::Iopl, Control, &[0x6E]).d(Input::Value(PORT)).exits(IO_EXIT)
        .says("Writes memory to a port.", "As IN."),
    row("swapgs", Needs::Ring0, Control, &[0x0F, 0x01, 0xF8]).only_64().exits("none: AMD-V's VMLOAD loads the guest's; with VT-x the hypervisor does")
        .says("Exchanges the base of GS with the kernel's.", "A kernel finds its own data by it: it must not be another kernel's."),
    row("sysret", Needs::Ring0, Control, &[0x48, 0x0F, 0x07]).only_64().c(Input::Next).feature(SYSCALL).msrs(SYSCALL_MSRS).once().exits(NONE)
        .says("Returns from SYSCALL to ring 3.", "It changes the ring."),
    row("sysexit", Needs::LegacyRing0, Control, &[0x0F, 0x35]).in_64(&[0x48, 0x0F, 0x35]).not_16().c(Input::Value(ground::STACK as u32)).d(Input::Next).feature(SEP).msrs(SYSENTER_MSRS).once().exits(NONE)
        .says("Returns from SYSENTER to ring 3.", "It changes the ring."),
    row("xsetbv", Needs::Ring0, Control, &[0x0F, 0x01, 0xD1]).c(Input::Value(0)).a(Input::Value(1)).d(Input::Value(0)).feature(XSAVE).cr4(CR4_OSXSAVE).exits("VT-x: XSETBV (55), always; AMD-V: XSETBV (0x8D)")
        .says("Writes XCR0.", "It says which state a context switch has to save."),
    row("xsaves", Needs::Ring0, Behaviour, &[0x0F, 0xC7, 0x2F]).a(Input::Value(0)).d(Input::Value(0)).feature(XSAVES).cr4(CR4_OSXSAVE).exits("VT-x: XSAVES (63), for the parts asked for; AMD-V: none")
        .says("Stores extended state, also the supervisor's (here: no part of it).", "It stores what is the kernel's, as shadow stacks and last branches."),
    row("xrstors", Needs::Ring0, Control, &[0x0F, 0xC7, 0x1F]).a(Input::Value(0)).d(Input::Value(0)).feature(XSAVES).cr4(CR4_OSXSAVE).exits("VT-x: XRSTORS (64), for the parts asked for; AMD-V: none")
        .says("Loads extended state, also the supervisor's (here: no part of it).", "As XSAVES."),
    row("stac", Needs::Ring0OrUndefined, Control, &[0x0F, 0x01, 0xCB]).feature(SMAP).exits(NONE)
        .says("Lets a kernel touch the pages of programs.", "It changes the flags of a kernel. (In rings 1 to 3 it is undefined: #UD.)"),
    row("clac", Needs::Ring0OrUndefined, Control, &[0x0F, 0x01, 0xCA]).feature(SMAP).exits(NONE)
        .says("Forbids a kernel to touch the pages of programs.", "As STAC."),
    row("rsm", Needs::Absent, Control, &[0x0F, 0xAA]).exits("VT-x: RSM (17); AMD-V: RSM (0x73)")
        .says("Leaves system management mode.", "It restores a whole state of the processor. Outside that mode it is undefined, in every ring: it hangs on the mode, not on the ring."),
    row("getsec", Needs::Absent, Control, &[0x0F, 0x37]).exits("VT-x: GETSEC (11), always")
        .says("Measured launch (Intel TXT).", "It would replace the host's kernel. Without CR4.SMXE it is undefined."),
    row("encls", Needs::Absent, Control, &[0x0F, 0x01, 0xCF]).exits("VT-x: ENCLS (60), for the functions asked for; AMD-V: none, it is undefined there")
        .says("Makes and manages enclaves (Intel SGX).", "Enclaves' memory is the host's to give; a guest that is not given any must not find it."),
    row("pconfig", Needs::Absent, Control, &[0x0F, 0x01, 0xC5]).exits("VT-x: PCONFIG (65), if asked for; AMD-V: none, it is undefined there")
        .says("Programs the keys of memory encryption (Intel).", "The keys are the host's."),
    row("vmxon", Needs::Absent, Control, &[0xF3, 0x0F, 0xC7, 0x37]).exits("VT-x: VMXON (27), always; AMD-V: none, it is undefined there")
        .says("Turns VT-x on.", "A guest that is not given VT-x must not find it."),
    row("vmxoff", Needs::Absent, Control, &[0x0F, 0x01, 0xC4]).exits("VT-x: VMXOFF (26), always; AMD-V: none, it is undefined there").says("Turns VT-x off.", "As VMXON."),
    row("vmlaunch", Needs::Absent, Control, &[0x0F, 0x01, 0xC2]).exits("VT-x: VMLAUNCH (20), always; AMD-V: none, it is undefined there").says("Enters a guest.", "As VMXON."),
    row("vmresume", Needs::Absent, Control, &[0x0F, 0x01, 0xC3]).exits("VT-x: VMRESUME (24), always; AMD-V: none, it is undefined there").says("Enters a guest again.", "As VMXON."),
    row("vmread", Needs::Absent, Behaviour, &[0x0F, 0x78, 0xC0]).exits("VT-x: VMREAD (23), unless VMCS shadowing lets it; AMD-V: none, it is undefined there").says("Reads a field of a guest's control structure.", "As VMXON."),
    row("vmwrite", Needs::Absent, Control, &[0x0F, 0x79, 0xC0]).exits("VT-x: VMWRITE (25), unless VMCS shadowing lets it; AMD-V: none, it is undefined there").says("Writes a field of a guest's control structure.", "As VMXON."),
    row("vmptrld", Needs::Absent, Control, &[0x0F, 0xC7, 0x37]).exits("VT-x: VMPTRLD (21), always; AMD-V: none, it is undefined there").says("Chooses a guest's control structure.", "As VMXON. (RDRAND has the same opcode with a register.)"),
    row("vmptrst", Needs::Absent, Behaviour, &[0x0F, 0xC7, 0x3F]).exits("VT-x: VMPTRST (22), always; AMD-V: none, it is undefined there").says("Stores where the current guest's control structure lies.", "As VMXON. (RDSEED has the same opcode with a register.)"),
    row("vmclear", Needs::Absent, Control, &[0x66, 0x0F, 0xC7, 0x37]).exits("VT-x: VMCLEAR (19), always; AMD-V: none, it is undefined there").says("Resets a guest's control structure.", "As VMXON."),
    row("invept", Needs::Absent, Control, &[0x66, 0x0F, 0x38, 0x80, 0x07]).exits("VT-x: INVEPT (50), always; AMD-V: none, it is undefined there").says("Throws away what the TLB holds of a guest.", "As VMXON."),
    row("invvpid", Needs::Absent, Control, &[0x66, 0x0F, 0x38, 0x81, 0x07]).exits("VT-x: INVVPID (53), always; AMD-V: none, it is undefined there").says("Throws away what the TLB holds of a guest's processor.", "As VMXON."),
    row("vmrun", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xD8]).exits("AMD-V: VMRUN (0x80); VT-x: none, it is undefined there").says("Enters a guest (AMD-V).", "A guest that is not given AMD-V must not find it."),
    row("vmload", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xDA]).exits("AMD-V: VMLOAD (0x82); VT-x: none, it is undefined there").says("Loads state of a guest (AMD-V).", "As VMRUN."),
    row("vmsave", Needs::ProcessorRing0, Behaviour, &[0x0F, 0x01, 0xDB]).exits("AMD-V: VMSAVE (0x83); VT-x: none, it is undefined there").says("Saves state of a guest (AMD-V).", "As VMRUN."),
    row("stgi", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xDC]).exits("AMD-V: STGI (0x84); VT-x: none, it is undefined there").says("Lets all interrupts in (AMD-V).", "As VMRUN; but where the processor has SKINIT, ring 0 has it too."),
    row("clgi", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xDD]).exits("AMD-V: CLGI (0x85); VT-x: none, it is undefined there").says("Holds all interrupts back (AMD-V).", "As VMRUN; but where the processor has SKINIT, ring 0 has it too."),
    row("skinit", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xDE]).exits("AMD-V: SKINIT (0x86); VT-x: none, it is undefined there").says("Measured launch (AMD-V).", "As GETSEC."),
    row("invlpga", Needs::ProcessorRing0, Control, &[0x0F, 0x01, 0xDF]).exits("AMD-V: INVLPGA (0x7A); VT-x: none, it is undefined there").says("Throws away what the TLB holds of a guest (AMD-V).", "As VMRUN."),
    // Innocuous: these must run directly, or virtualisation is emulation.
    row("nop", Needs::Nothing, Innocuous, &[0x90]).exits(NONE).says("Does nothing.", "What it costs is the floor of the others."),
    row("add", Needs::Nothing, Innocuous, &[0x01, 0xC0]).exits(NONE).says("Adds.", "It works on its operands alone."),
    row("rdfsbase", Needs::Nothing, Innocuous, &[0xF3, 0x48, 0x0F, 0xAE, 0xC0]).only_64().sees(Sees::FsBase).feature(FSGSBASE).cr4(CR4_FSGSBASE).msrs(FS_BASE_MSR).exits(NO_EXIT)
        .says("Reads the base of FS.", "A register of the program's own, as RAX is: a monitor has to load it when it switches, and need not see it used."),
    row("wrfsbase", Needs::Nothing, Innocuous, &[0xF3, 0x48, 0x0F, 0xAE, 0xD0]).only_64().a(Input::Value(0)).feature(FSGSBASE).cr4(CR4_FSGSBASE).exits(NO_EXIT)
        .says("Writes the base of FS.", "As RDFSBASE."),
    row("rdgsbase", Needs::Nothing, Innocuous, &[0xF3, 0x48, 0x0F, 0xAE, 0xC8]).only_64().feature(FSGSBASE).cr4(CR4_FSGSBASE).exits(NO_EXIT)
        .says("Reads the base of GS.", "As RDFSBASE."),
    row("wrgsbase", Needs::Nothing, Innocuous, &[0xF3, 0x48, 0x0F, 0xAE, 0xD8]).only_64().a(Input::Value(0)).feature(FSGSBASE).cr4(CR4_FSGSBASE).exits(NO_EXIT)
        .says("Writes the base of GS.", "As RDFSBASE."),
    row("rdpkru", Needs::Nothing, Innocuous, &[0x0F, 0x01, 0xEE]).c(Input::Value(0)).sees(Sees::Pkru).feature(PKU).cr4(CR4_PKE).exits(BY_SOFTWARE)
        .says("Reads the rights of the protection keys.", "A register of the program's own: as RDFSBASE."),
    row("wrpkru", Needs::Nothing, Innocuous, &[0x0F, 0x01, 0xEF]).a(Input::Value(0)).c(Input::Value(0)).d(Input::Value(0)).feature(PKU).cr4(CR4_PKE).exits(BY_SOFTWARE)
        .says("Writes the rights of the protection keys.", "As RDFSBASE."),
    row("pause", Needs::Nothing, Innocuous, &[0xF3, 0x90]).exits("VT-x: PAUSE (40); AMD-V: PAUSE (0x77); only when it is done too often").says("Tells the processor that a loop waits.", "A hypervisor may use it to let another guest run."),
    row("popcnt", Needs::Nothing, Innocuous, &[0xF3, 0x0F, 0xB8, 0xC0]).feature(POPCNT).exits(NONE).says("Counts bits.", "It works on its operands alone."),
    row("cmpxchg16b", Needs::Nothing, Innocuous, &[0xF0, 0x48, 0x0F, 0xC7, 0x0F]).only_64().feature(CX16).exits(NONE).says("Compares and exchanges 16 bytes, as kernels' lock-free lists do.", "It works on its operands alone."),
    row("fnop", Needs::Nothing, Innocuous, &[0xD9, 0xD0]).exits(NONE).says("The x87's NOP.", "It works on its operands alone."),
    row("addps", Needs::Nothing, Innocuous, &[0x0F, 0x58, 0xC0]).feature(FXSR).cr4(CR4_OSFXSR).exits(NONE).says("Adds four numbers (SSE).", "It works on its operands alone."),
    row("ud2", Needs::Absent, Innocuous, &[0x0F, 0x0B]).exits("VT-x: exception (0), AMD-V: #UD (0x46); if asked for").says("Is undefined by definition.", "The guest's own handler has to get it."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_complete() {
        for (n, row) in INSTRUCTIONS.iter().enumerate() {
            assert!(
                !row.about.is_empty() && !row.why.is_empty() && !row.exits.is_empty(),
                "{}",
                row.name
            );
            assert!(row.bytes.iter().any(|bytes| !bytes.is_empty()), "{}", row.name);
            assert!(INSTRUCTIONS[..n].iter().all(|other| other.name != row.name), "{}", row.name);
        }
    }

    /// Their paper names eighteen mnemonics; MOV is two rows here.
    #[test]
    fn the_seventeen_are_there() {
        let found = INSTRUCTIONS.iter().filter(|row| row.seventeen);
        let mut words: Vec<_> = found.map(|row| row.name.split(' ').next().unwrap()).collect();
        words.dedup();
        words.sort_unstable();
        let mut paper = [
            "sgdt", "sidt", "sldt", "smsw", "pushf", "popf", "lar", "lsl", "verr", "verw", "pop",
            "push", "call", "jmp", "int", "ret", "str", "mov",
        ];
        paper.sort_unstable();
        words.dedup();
        assert_eq!(words, paper);
        assert!(INSTRUCTIONS.iter().all(|row| !row.seventeen || !row.is_privileged()));
    }

    #[test]
    fn the_bytes_are_the_instruction_of_the_name() {
        use iced_x86::{Decoder, DecoderOptions};
        for row in INSTRUCTIONS {
            for (bytes, bits) in
                row.bytes.iter().zip([16, 32, 64]).filter(|(bytes, _)| !bytes.is_empty())
            {
                let decoded = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
                assert_eq!(decoded.len(), bytes.len(), "{} {bits}: {decoded:?}", row.name);
                let mnemonic = format!("{:?}", decoded.mnemonic()).to_lowercase();
                let word = row.name.split(' ').next().unwrap();
                let same = mnemonic.starts_with(word)
                    || mnemonic.starts_with(&format!("{word}b"))
                    || (word, &mnemonic[..]) == ("ret", "retf")
                    || mnemonic.starts_with("sysexit");
                assert!(same, "{} {bits}: {mnemonic}", row.name);
            }
        }
    }
}

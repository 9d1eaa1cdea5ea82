//! KVM's register structures from ours, and back.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::x86::{
    CpuInit, CpuState, Cr0, Cr4, DescriptorTable, Efer, PagingFeatures, Regs, Rflags, Segment,
};

/// APIC base at reset: the address, enabled; the first processor is marked (Intel SDM
/// Vol. 3A 11.4.4).
const APIC_BASE: u64 = 0xFEE0_0000 | 1 << 11;
const APIC_BASE_BSP: u64 = 1 << 8;

pub(super) fn regs(regs: &Regs, rflags: Rflags) -> kvm_regs {
    let &Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip } =
        regs;
    let rflags = rflags.bits();
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

pub(super) fn sregs(cpu: &CpuInit, first: bool) -> kvm_sregs {
    let data = segment(&cpu.data);
    kvm_sregs {
        cs: segment(&cpu.cs),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: segment(&cpu.ss),
        tr: segment(&cpu.tr),
        ldt: segment(&cpu.ldt),
        gdt: table(cpu.gdt),
        idt: table(cpu.idt),
        cr0: cpu.cr0.bits(),
        cr3: cpu.cr3,
        cr4: cpu.cr4.bits(),
        efer: cpu.efer.bits(),
        apic_base: APIC_BASE | if first { APIC_BASE_BSP } else { 0 },
        ..Default::default()
    }
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.default_32.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.granularity().into(),
        unusable: (!segment.present).into(),
        ..Default::default()
    }
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

/// The general registers and the flags. On the exit path, and so field by field: as a whole they
/// would be a call of memcpy. Public for the bench alone.
#[doc(hidden)]
#[inline]
pub fn general(regs: &kvm_regs) -> (Regs, Rflags) {
    let &kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, .. } = regs;
    let &kvm_regs { r12, r13, r14, r15, rip, rflags, .. } = regs;
    let regs =
        Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip };
    (regs, Rflags::from_bits_retain(rflags))
}

/// What KVM_GET_REGS and KVM_GET_SREGS gave.
pub(super) fn state(
    regs: &kvm_regs,
    sregs: &kvm_sregs,
    paging_features: PagingFeatures,
) -> CpuState {
    let (regs, rflags) = general(regs);
    CpuState {
        regs,
        rflags,
        cs: from_segment(&sregs.cs),
        ds: from_segment(&sregs.ds),
        es: from_segment(&sregs.es),
        fs: from_segment(&sregs.fs),
        gs: from_segment(&sregs.gs),
        ss: from_segment(&sregs.ss),
        tr: from_segment(&sregs.tr),
        ldt: from_segment(&sregs.ldt),
        gdt: DescriptorTable { base: sregs.gdt.base, limit: sregs.gdt.limit },
        idt: DescriptorTable { base: sregs.idt.base, limit: sregs.idt.limit },
        cr0: Cr0::from_bits_retain(sregs.cr0),
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: Cr4::from_bits_retain(sregs.cr4),
        cr8: sregs.cr8,
        efer: Efer::from_bits_retain(sregs.efer),
        apic_base: sregs.apic_base,
        paging_features,
    }
}

fn from_segment(segment: &kvm_segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        kind: segment.type_,
        dpl: segment.dpl,
        code_or_data: segment.s != 0,
        present: segment.present != 0 && segment.unusable == 0,
        default_32: segment.db != 0,
        long: segment.l != 0,
    }
}

/// Changes of `sregs` what `state` has otherwise. The rest stays as KVM gave it: pending
/// interrupts, and the parts of descriptors that [`Segment`] does not hold.
pub(super) fn change_sregs(sregs: &mut kvm_sregs, state: &CpuState) {
    let segments = [
        (&mut sregs.cs, &state.cs),
        (&mut sregs.ds, &state.ds),
        (&mut sregs.es, &state.es),
        (&mut sregs.fs, &state.fs),
        (&mut sregs.gs, &state.gs),
        (&mut sregs.ss, &state.ss),
        (&mut sregs.tr, &state.tr),
        (&mut sregs.ldt, &state.ldt),
    ];
    for (there, new) in segments.into_iter().filter(|(there, new)| from_segment(there) != **new) {
        *there = segment(new);
    }
    (sregs.gdt, sregs.idt) = (table(state.gdt), table(state.idt));
    (sregs.cr0, sregs.cr2, sregs.cr3) = (state.cr0.bits(), state.cr2, state.cr3);
    (sregs.cr4, sregs.cr8, sregs.efer) = (state.cr4.bits(), state.cr8, state.efer.bits());
    sregs.apic_base = state.apic_base;
}

//! What tests here need: a vCPU that stands still.

use crate::x86::{CpuInit, CpuState, PagingFeatures, Regs, Rflags};

/// A vCPU in its start state but for where it is.
pub(crate) fn cpu(init: CpuInit, rip: u64, rbp: u64) -> CpuState {
    CpuState {
        regs: Regs { rip, rbp, ..init.regs },
        rflags: Rflags::ONE,
        cs: init.cs,
        ds: init.data,
        es: init.data,
        fs: init.data,
        gs: init.data,
        ss: init.ss,
        tr: init.tr,
        ldt: init.ldt,
        gdt: init.gdt,
        idt: init.idt,
        cr0: init.cr0,
        cr2: 0,
        cr3: init.cr3,
        cr4: init.cr4,
        cr8: 0,
        efer: init.efer,
        apic_base: 0,
        paging_features: PagingFeatures::ALL,
    }
}

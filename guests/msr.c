/*
 * MSRs: known ones hold what is written, the time stamp counter runs, and an unknown one raises
 * #GP, on reading and on writing. The exit code tells which was wrong.
 */
#include "guest.h"
#include "msr.h"
#include "print.h"
#include "trap.h"

enum {
    MSR_TSC = 0x10,
    MSR_APIC_BASE = 0x1B,
    MSR_PAT = 0x277,
    MSR_EFER = 0xC0000080,
    MSR_FS_BASE = 0xC0000100,
    MSR_GS_BASE = 0xC0000101,
    MSR_KERNEL_GS_BASE = 0xC0000102,
    MSR_UNKNOWN = 0x00DEAD00,
    EFER_SCE = 1 << 0,
    EFER_LME = 1 << 8,
    EFER_LMA = 1 << 10,
    EFER_RESERVED = 1 << 5,
};

static int known(void)
{
    uint64_t efer = read_msr(MSR_EFER);
    uint64_t tsc;

    if ((efer & (EFER_LME | EFER_LMA)) != (EFER_LME | EFER_LMA))
        return 1;
    if (!msr_holds(MSR_EFER, efer ^ EFER_SCE) || !msr_holds(MSR_EFER, efer))
        return 2;
    if (!msr_holds(MSR_FS_BASE, 0x123456789A) || !msr_holds(MSR_GS_BASE, 0xFFFF800000001000))
        return 3;
    if (!msr_holds(MSR_KERNEL_GS_BASE, 0x1000))
        return 4;
    tsc = read_msr(MSR_TSC);
    if (read_msr(MSR_TSC) <= tsc)
        return 5;
    if (!msr_holds(MSR_PAT, 0x0007040600070406))
        return 6;
    if ((read_msr(MSR_APIC_BASE) & ~0xFFFull) != 0xFEE00000)
        return 7;
    return 0;
}

static int unknown(void)
{
    read_msr(MSR_UNKNOWN);
    if (trap_vector != GENERAL_PROTECTION)
        return 11;
    write_msr(MSR_UNKNOWN, 1);
    if (trap_vector != GENERAL_PROTECTION)
        return 12;
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_RESERVED);
    if (trap_vector != GENERAL_PROTECTION)
        return 13;
    return 0;
}

int guest(uint32_t magic, uintptr_t info)
{
    int code;

    (void)magic, (void)info;
    trap_install();
    code = known();
    if (!code)
        code = unknown();
    print("msr %s\n", code ? "wrong" : "right");
    return code;
}

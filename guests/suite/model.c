/* Model-specific registers, and control and debug registers. */
#include "msr.h"
#include "suite.h"
#include "trap.h"

enum {
    MSR_TSC = 0x10,
    MSR_APIC_BASE = 0x1B,
    MSR_PAT = 0x277,
    MSR_EFER = 0xC0000080,
    MSR_STAR = 0xC0000081,
    MSR_LSTAR = 0xC0000082,
    MSR_SFMASK = 0xC0000084,
    MSR_KERNEL_GS_BASE = 0xC0000102,
    MSR_NOBODY = 0x00DEAD00,
    EFER_SCE = 1 << 0,
    EFER_LONG_MODE = 1 << 8 | 1 << 10,
    CR0_PE_PG = (int)(1u << 31 | 1),
    CR0_TS = 1 << 3,
    CR4_PAE = 1 << 5,
};

#define CONTROL_REGISTER(name)                                                                    \
    static uint64_t name(void)                                                                    \
    {                                                                                             \
        uint64_t value;                                                                           \
                                                                                                  \
        asm volatile("mov %%" #name ", %0" : "=r"(value));                                        \
        return value;                                                                             \
    }
CONTROL_REGISTER(cr0)
CONTROL_REGISTER(cr2)
CONTROL_REGISTER(cr4)
CONTROL_REGISTER(dr0)
CONTROL_REGISTER(dr7)

TEST(efer_says_long_mode)
{
    CHECK((read_msr(MSR_EFER) & EFER_LONG_MODE) == EFER_LONG_MODE);
}

TEST(efer_sce_turns_on)
{
    CHECK(msr_holds(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE));
}

TEST(efer_reserved_bits_fault)
{
    write_msr(MSR_EFER, read_msr(MSR_EFER) | 1 << 5);
    CHECK(trap_vector == GENERAL_PROTECTION);
}

TEST(star_holds)
{
    CHECK(msr_holds(MSR_STAR, 0x0013000800000000));
}

TEST(lstar_holds_an_upper_address)
{
    CHECK(msr_holds(MSR_LSTAR, 0xFFFFFFFF80001000));
}

TEST(sfmask_holds)
{
    CHECK(msr_holds(MSR_SFMASK, 0x700));
}

TEST(pat_holds)
{
    CHECK(msr_holds(MSR_PAT, 0x0007040600070406));
}

TEST(long_mode_cannot_go_while_paging)
{
    write_msr(MSR_EFER, read_msr(MSR_EFER) & ~(uint64_t)EFER_LONG_MODE);
    CHECK(trap_vector == GENERAL_PROTECTION);
}

TEST(kernel_gs_base_holds)
{
    CHECK(msr_holds(MSR_KERNEL_GS_BASE, 0xFFFF888000000000));
}

TEST(an_msr_of_nobody_faults)
{
    read_msr(MSR_NOBODY);
    CHECK(trap_vector == GENERAL_PROTECTION);
}

TEST(the_local_apic_is_where_it_should_be)
{
    CHECK((read_msr(MSR_APIC_BASE) & 0xFFFFFF000) == 0xFEE00000);
}

TEST(the_time_stamp_counter_runs)
{
    uint64_t before = read_msr(MSR_TSC);

    CHECK(read_msr(MSR_TSC) > before);
}

TEST(cr0_says_protected_and_paged)
{
    CHECK((cr0() & (uint32_t)CR0_PE_PG) == (uint32_t)CR0_PE_PG);
}

TEST(cr2_holds)
{
    asm volatile("mov %0, %%cr2" : : "r"(opaque(0x123456789ABC)));
    CHECK(cr2() == 0x123456789ABC);
}

TEST(cr4_says_pae)
{
    CHECK(cr4() & CR4_PAE);
}

TEST(clts_clears_ts)
{
    asm volatile("mov %0, %%cr0" : : "r"(cr0() | CR0_TS) : "memory");
    CHECK(cr0() & CR0_TS);
    asm volatile("clts");
    CHECK(!(cr0() & CR0_TS));
}

TEST(long_mode_cannot_lose_pae)
{
    asm volatile(GUARDED("mov %0, %%cr4") : : "r"(cr4() & ~(uint64_t)CR4_PAE) : "memory");
    CHECK(trap_vector == GENERAL_PROTECTION);
}

TEST(dr0_holds)
{
    asm volatile("mov %0, %%dr0" : : "r"(opaque(0x1000)));
    CHECK(dr0() == 0x1000);
}

TEST(dr7_has_its_fixed_bit)
{
    CHECK(dr7() & 0x400);
}

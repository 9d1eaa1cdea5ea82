/* Segment registers and descriptor tables in long mode. */
#include "suite.h"
#include "trap.h"

enum { MSR_FS_BASE = 0xC0000100, MSR_GS_BASE = 0xC0000101 };

struct pointer {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

static uint64_t cell = 5, cells[3] = { 0, 0, 6 };

static void set_base(uint32_t msr, const void *base)
{
    uint64_t it = (uintptr_t)base;

    asm volatile("wrmsr" : : "a"((uint32_t)it), "d"(it >> 32), "c"(msr) : "memory");
}

TEST(code_runs_in_the_kernel_segment)
{
    uint16_t it;

    asm("movw %%cs, %0" : "=r"(it));
    CHECK(it == KERNEL_CODE);
}

TEST(ds_takes_the_null_selector)
{
    uint16_t it;

    asm volatile("movw %w1, %%ds\n movw %%ds, %0" : "=r"(it) : "r"(opaque(0)));
    CHECK(it == 0 && cell == 5);
}

TEST(es_takes_a_data_segment)
{
    uint16_t it;

    asm volatile("movw %w1, %%es\n movw %%es, %0" : "=r"(it) : "r"(opaque(KERNEL_DATA)));
    CHECK(it == KERNEL_DATA);
}

TEST(ss_refuses_a_code_segment)
{
    asm volatile(GUARDED("movw %w0, %%ss") : : "r"(opaque(KERNEL_CODE)) : "memory");
    CHECK(trap_vector == GENERAL_PROTECTION);
}

TEST(fs_base_is_added)
{
    uint64_t it;

    set_base(MSR_FS_BASE, &cell);
    asm volatile("movq %%fs:0, %0" : "=r"(it));
    CHECK(it == 5);
}

TEST(gs_base_is_added)
{
    uint64_t it;

    set_base(MSR_GS_BASE, cells);
    asm volatile("movq %%gs:16, %0" : "=r"(it));
    CHECK(it == 6);
}

TEST(swapgs_swaps)
{
    uint64_t it;

    set_base(MSR_GS_BASE, 0);
    set_base(MSR_GS_BASE + 1, &cell);
    asm volatile("swapgs\n movq %%gs:0, %0" : "=r"(it));
    CHECK(it == 5);
}

TEST(sgdt_tells_what_lgdt_loaded)
{
    struct pointer old, now;

    asm volatile("sgdt %0\n lgdt %0\n sgdt %1" : "=m"(old), "=m"(now));
    CHECK(old.base == now.base && old.limit == now.limit && old.limit >= TASK);
}

TEST(lidt_loads)
{
    struct pointer old, new = { 0xFFF, 0x123000 }, now;

    asm volatile("sidt %0\n lidt %2\n sidt %1\n lidt %0" : "=m"(old), "=m"(now) : "m"(new));
    CHECK(now.base == 0x123000 && now.limit == 0xFFF);
}

TEST(str_tells_the_task)
{
    uint64_t it = 0;

    asm volatile("strw %w0" : "+r"(it));
    CHECK(it == TASK);
}

TEST(lldt_takes_null)
{
    uint64_t it = 9;

    asm volatile("lldt %w1\n sldt %w0" : "+r"(it) : "r"(opaque(0)));
    CHECK(it == 0);
}

TEST(ltr_refuses_a_busy_task)
{
    asm volatile(GUARDED("ltr %w0") : : "r"(opaque(TASK)) : "memory");
    CHECK(trap_vector == GENERAL_PROTECTION);
}

TEST(a_far_return_loads_cs)
{
    uint64_t it = 0;

    asm volatile("pushq %1\n leaq 1f(%%rip), %%rax\n pushq %%rax\n lretq\n 1: movw %%cs, %w0"
                 : "+r"(it) : "r"(opaque(KERNEL_CODE)) : "rax", "memory");
    CHECK(it == KERNEL_CODE);
}

TEST(cli_and_sti)
{
    uint64_t on, off;

    asm volatile("sti\n pushfq\n popq %0\n cli\n pushfq\n popq %1" : "=r"(on), "=r"(off) : : "memory");
    CHECK((on & IF) && !(off & IF));
}

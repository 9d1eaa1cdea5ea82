/*
 * Walk: a guest to debug, with symbols and lines in the ELF of the same addresses. Real mode,
 * protected mode and long mode are walk.S; here are a variable to watch, a function to stop in, a
 * visit to ring 3, and the other processors (as many as the machine has). spin=1 on the command
 * line, or a debugger that sets `spinning`, makes it spin until `spinning` is 0; all processors do, if it is set when they arrive.
 */
#include "walk.h"
#include "guest.h"
#include "print.h"
#include "rings.h"
#include "start_info.h"
#include "trap.h"

enum { PORT_FUNCTION = 0x520, PORT_RESULT = 0x528, HYPERCALL_CPUS = 3 };
enum { APIC = 0xFEE00000, APIC_SPURIOUS = 0xF0, APIC_ICR = 0x300, APIC_ENABLE = 0x1FF };
enum { ALL_BUT_ME = 0xC0000, ASSERT = 0x4000, INIT = 0x500, STARTUP = 0x600 };

volatile uint64_t counter;
volatile uint32_t spinning;
volatile uint64_t spins;
static volatile uint32_t arrived;
static struct trap seen;

int on_trap(struct trap *trap)
{
    return leave_ring3(trap, &seen);
}

__attribute__((noinline)) void count(uint64_t by)
{
    counter += by;
}

__attribute__((noinline)) void spin(void)
{
    asm volatile("sti"); /* or Bochs lets no timer of the host in */
    while (spinning)
        spins++;
    asm volatile("cli");
}

__attribute__((noinline)) void arrive(uint32_t index)
{
    (void)index;
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
}

__attribute__((noinline)) void turn(void)
{
    asm volatile("");
}

__attribute__((noinline)) void turn_back(void)
{
    asm volatile("");
}

void processor(uint32_t index)
{
    arrive(index);
    while (spinning) {
        turn();
        turn_back();
    }
    for (;;)
        asm volatile("cli; hlt");
}

static void apic_write(uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(APIC + offset) = value;
}

static void start_others(uint32_t others)
{
    apic_write(APIC_SPURIOUS, APIC_ENABLE);
    apic_write(APIC_ICR, ALL_BUT_ME | ASSERT | INIT);
    apic_write(APIC_ICR, ALL_BUT_ME | ASSERT | STARTUP | SIPI_PAGE);
    while (arrived < others)
        asm volatile("pause");
}

int guest(uint32_t magic, uintptr_t info)
{
    uint32_t cpus;

    (void)magic;
    trap_install();
    if (info)
        spinning = cmdline_is(start_info_cmdline(info), "spin", "1");
    print("entered in %s mode\n", info ? "long" : "real");
    spin();
    print("1 + 2 = %u\n", three_steps());
    for (uint64_t i = 1; i <= 3; i++)
        count(i);
    print("counter=%u\n", (unsigned)counter);
    visit_ring3((uintptr_t)user_part);
    print("ring 3: rax=%u at the %s\n", (unsigned)seen.rax,
          seen.rip == (uintptr_t)user_end ? "end" : "wrong place");
    outl(PORT_FUNCTION, HYPERCALL_CPUS);
    cpus = inl(PORT_RESULT);
    if (cpus > 1) {
        start_others(cpus - 1);
        spin();
    }
    print("processors=%u\n", arrived + 1);
    return 0;
}

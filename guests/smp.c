/*
 * SMP: starts the other processors by INIT and SIPI through the local APIC (Intel SDM vol. 3,
 * 9.4.4); each reports, and the first ends the machine when all are there. cpus=N: how many.
 * end=exit: one of the others ends it, with code 9, while the first spins; end=triple-fault: it
 * dies; end=halt: all halt for ever.
 */
#include "smp.h"
#include "cpuid.h"
#include "guest.h"
#include "paging.h"
#include "print.h"
#include "start_info.h"
#include "trap.h"

enum { MAX_CPUS = 16 };

static volatile uint32_t apic_ids[MAX_CPUS];
static volatile uint32_t arrived;
static const char *cmdline;
static uint32_t cpus;

static const uint8_t no_idt[10];

/* Every processor but the first comes here from the trampoline, on a stack of its own. */
void processor(uint32_t index)
{
    apic_ids[index] = cpuid(1).ebx >> 24;
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == cpus - 1) {
        if (cmdline_is(cmdline, "end", "exit"))
            finish(9);
        if (cmdline_is(cmdline, "end", "triple-fault"))
            asm volatile("lidt %0; ud2" : : "m"(no_idt));
    }
    for (;;)
        asm volatile("cli; hlt");
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic;
    cmdline = start_info_cmdline(info);
    cpus = cmdline_number(cmdline, "cpus", 2);
    if (cpus > MAX_CPUS)
        return 1;
    trap_install();
    map_identity(4, 0); /* our own tables: the trampoline may land on those that we came with */
    print("cpu 0 apic_id=%u\n", cpuid(1).ebx >> 24);
    start_others();
    while (arrived < cpus - 1 || cmdline_is(cmdline, "end", "exit") ||
           cmdline_is(cmdline, "end", "triple-fault"))
        asm volatile("pause");
    for (uint32_t i = 1; i < cpus; i++)
        print("cpu %u apic_id=%u\n", i, apic_ids[i]);
    print("arrived=%u\n", arrived + 1);
    while (cmdline_is(cmdline, "end", "halt"))
        asm volatile("cli; hlt");
    return 0;
}

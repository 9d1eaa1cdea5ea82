/*
 * Reset with several processors (cpus=N): the first starts the others, which take values of their
 * own and wait for an order; it says that it is ready, and does what the name of its test says:
 * check (each has its own values), change (each takes others), halt (they halt for ever), park
 * (they wait for a SIPI), restart (they start anew), triple-fault (one dies). With late=1 it is
 * ready before it has started them: check starts them first, still finds that none of them runs.
 * Without a name it checks.
 */
#include <ringfence.h>
#include "cmdline.h"
#include "guest.h"
#include "paging.h"
#include "print.h"
#include "smp.h"
#include "start_info.h"
#include "trap.h"

enum { LSTAR = 0xC0000082, KERNEL_GS_BASE = 0xC0000102, CR4_TSD = 4 };
enum { WAIT, CHECK, CHANGE, HALT, DIE };

static uint32_t cpus;
static volatile uint32_t order, arrived, done, wrong, beats;
static const uint8_t no_idt[10];

static void add(volatile uint32_t *count)
{
    __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
}

static void write_msr(uint32_t number, uint64_t value)
{
    asm volatile("wrmsr" : : "a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(number));
}

static uint64_t read_msr(uint32_t number)
{
    uint32_t low, high;

    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return low | (uint64_t)high << 32;
}

static uint64_t read_cr4(void)
{
    uint64_t cr4;

    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    return cr4;
}

/* The values of a processor: set 0 is that of the checkpoint. */
static void take_values(uint64_t index, unsigned set)
{
    uint64_t own = index << 12 | (set ? 0xF00000 : 0x100000);
    uint64_t xmm[2] = { own, ~own };
    uint64_t cr4 = (read_cr4() | 0x600) & ~(uint64_t)CR4_TSD; /* OSFXSR, OSXMMEXCPT */

    asm volatile("mov %0, %%cr4" : : "r"(cr4 | (set ? CR4_TSD : 0)));
    asm volatile("mov %0, %%cr2\n mov %0, %%dr0\n mov %0, %%dr3" : : "r"(own));
    asm volatile("movdqu %0, %%xmm5" : : "m"(xmm));
    write_msr(LSTAR, own);
    write_msr(KERNEL_GS_BASE, own + 1);
    *apic(APIC_SPURIOUS) = APIC_ENABLE;
    *apic(APIC_TASK_PRIORITY) = (set ? 0x80 : 0x40) + index;
}

static void check_values(uint64_t index)
{
    uint64_t own = index << 12 | 0x100000, cr2, dr0, dr3, xmm[2];

    asm volatile("mov %%cr2, %0\n mov %%dr0, %1\n mov %%dr3, %2" : "=r"(cr2), "=r"(dr0), "=r"(dr3));
    asm volatile("movdqu %%xmm5, %0" : "=m"(xmm));
    if (cr2 != own || dr0 != own || dr3 != own || xmm[0] != own || xmm[1] != ~own ||
        read_msr(LSTAR) != own || read_msr(KERNEL_GS_BASE) != own + 1 || read_cr4() & CR4_TSD ||
        (*apic(APIC_TASK_PRIORITY) & 0xF0) != 0x40) /* kvm_amd loses the rest by itself */
        add(&wrong);
}

/* Every processor but the first comes here; one that starts anew has its old number and more. */
void processor(uint32_t index)
{
    index = (index - 1) % (cpus - 1) + 1;
    take_values(index, 0);
    add(&arrived);
    while (order == WAIT) {
        add(&beats);
        asm volatile("pause"); /* where processors take turns, the others' */
    }
    if (order == CHECK)
        check_values(index);
    if (order == CHANGE)
        take_values(index, 1);
    if (order == DIE && index == 1)
        asm volatile("lidt %0; ud2" : : "m"(no_idt));
    add(&done);
    for (;;)
        asm volatile("cli; hlt");
}

static void wait_for(volatile uint32_t *count)
{
    while (*count != cpus - 1)
        asm volatile("pause");
}

static void give(uint32_t what)
{
    order = what;
    wait_for(&done);
}

static uint32_t run(const char *name)
{
    switch (name[0] ? name[0] + name[1] + name[2] : 0) {
    case 'c' + 'h' + 'a': /* change */
        take_values(0, 1);
        give(CHANGE);
        return 0;
    case 'h' + 'a' + 'l': /* halt */
        give(HALT);
        return 0;
    case 'p' + 'a' + 'r': /* park */
        init_others();
        return 0;
    case 'r' + 'e' + 's': /* restart */
        arrived = 0;
        start_others();
        wait_for(&arrived);
        return 0;
    case 't' + 'r' + 'i': /* triple-fault */
        give(DIE);
        return 1;
    case 's' + 't' + 'i': /* still */
        for (unsigned i = 0; i < 20; i++)
            pause_a_little();
        return arrived + beats;
    }
    if (!arrived) {
        start_others();
        wait_for(&arrived);
    }
    check_values(0);
    give(CHECK);
    return wrong;
}

int guest(uint32_t magic, uintptr_t info)
{
    static const char *const names[] = { "check", "change", "halt", "park", "restart", "triple-fault", "still" };
    const char *cmdline = start_info_cmdline(info);
    char name[64];

    (void)magic;
    cpus = cmdline_number(cmdline, "cpus", 2);
    map_identity(4, 0);
    if (!cmdline_number(cmdline, "late", 0)) {
        start_others();
        wait_for(&arrived);
    }
    take_values(0, 0);
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        ringfence_announce(names[i]);
    ringfence_ready();
    for (unsigned i = 0; i < sizeof(name); i++)
        name[i] = (char)inb(RINGFENCE_NEXT);
    return (int)run(name);
}

/*
 * Trap and emulate, as before 2005: a guest kernel in ring 3 under a monitor in ring 0, which is the
 * forty lines from here to on_trap's end. Each privileged instruction of the kernel's raises #GP; the
 * monitor does to the *virtual* processor what the instruction wanted to do to the real one. That is
 * Popek and Goldberg's construction, and on x86 it fails: PUSHF and SMSW are sensitive, do not trap,
 * and tell the kernel the real state.
 *
 * To try, each time with `cargo run -- run @trap-and-emulate`:
 * - give the kernel another instruction, as MOV from CR3 (0F 20 D8): it ends with "trap 13" until the
 *   monitor has a case for it;
 * - let the kernel turn interrupts off by POPF: the monitor is not told;
 * - set bit 11 of CR4, UMIP, in guest(): SMSW traps now, and the monitor has to learn it (0F 01 E0, three
 *   bytes, into EAX); then it is right.
 */
#include "guest.h"
#include "paging.h"
#include "print.h"
#include "rings.h"
#include "trap.h"

enum { HLT = 0xF4, CLI = 0xFA, STI = 0xFB, OUT = 0xE6, TWO_BYTES = 0x0F, IF = 1 << 9 };

static struct {
    int halted;
    uint64_t cr0, flags;
    unsigned traps;
} virtual = { .cr0 = 0x60000010, .flags = IF }; /* as after reset, but interrupts on */

/* The monitor: what an instruction that trapped does to the virtual processor; its length. */
static int emulate(const uint8_t *code, struct trap *kernel)
{
    switch (code[0]) {
    case CLI: virtual.flags &= ~IF; return 1;
    case STI: virtual.flags |= IF; return 1;
    case HLT: virtual.halted = 1; return 1;
    case OUT: print("out: port=0x%x value=%c\n", code[1], (int)kernel->rax); return 2;
    case TWO_BYTES:
        if (code[1] == 0x20 && code[2] == 0xC0) /* mov %cr0, %rax */
            return kernel->rax = virtual.cr0, 3;
        if (code[1] == 0x22 && code[2] == 0xC0) /* mov %rax, %cr0 */
            return virtual.cr0 = kernel->rax, 3;
    }
    return 0;
}

int on_trap(struct trap *trap)
{
    int length = trap->vector == GENERAL_PROTECTION && (trap->cs & 3) == 3
                     ? emulate((const uint8_t *)trap->rip, trap) : 0;

    virtual.traps++;
    trap->rip += length;
    if (virtual.halted) { /* back to guest(), in ring 0 */
        trap->rip = (uintptr_t)back_in_ring0;
        trap->cs = KERNEL_CODE, trap->ss = KERNEL_DATA;
        trap->rsp = ring0_stack, trap->rflags = 2;
    }
    return length > 0;
}

static uint64_t cr0_by_mov, cr0_by_smsw, flags_off, flags_on;

/* The guest kernel: it believes that it has the machine for itself. */
static void kernel(void)
{
    asm volatile("mov %%cr0, %%rax\n or $1, %%eax\n mov %%rax, %%cr0\n" /* protection on */
                 "mov %%cr0, %%rax\n mov %%rax, %0\n"
                 "smsw %%eax\n mov %%rax, %1\n"
                 "cli\n pushf\n pop %2\n"
                 "sti\n pushf\n pop %3\n"
                 "mov $'k', %%eax\n out %%al, $0x80\n"
                 "hlt" /* the end: the monitor does not come back */
                 : "=m"(cr0_by_mov), "=m"(cr0_by_smsw), "=m"(flags_off), "=m"(flags_on)
                 : : "rax", "memory");
}

int guest(uint32_t magic, uintptr_t info)
{
    int smsw_is_right, pushf_is_right;

    (void)magic, (void)info;
    trap_install();
    map_identity(1, PAGE_USER);
    visit_ring3((uintptr_t)kernel);
    smsw_is_right = cr0_by_smsw == cr0_by_mov;
    pushf_is_right = !(flags_off & IF) && (flags_on & IF);
    print("the virtual processor: cr0=0x%lx interrupts=%s\n", virtual.cr0,
          virtual.flags & IF ? "on" : "off");
    print("traps=%u\n", virtual.traps);
    print("mov from cr0=0x%lx: %s\n", cr0_by_mov,
          cr0_by_mov == virtual.cr0 ? "right, it trapped" : "wrong, the monitor's answer is not its CR0");
    print("smsw=0x%lx: %s\n", cr0_by_smsw, smsw_is_right ? "right" : "wrong, it did not trap");
    print("pushf: %s\n", pushf_is_right ? "right" : "wrong, the flag that cli and sti change is virtual");
    return virtual.cr0 != 0x60000011 || cr0_by_mov != virtual.cr0 || !(virtual.flags & IF);
}

/* Timer: counts five ticks of the PIT's channel 0, which come as IRQ 0 through the PIC. */
#include "guest.h"
#include "pic.h"
#include "print.h"
#include "trap.h"

enum { PIT_CHANNEL0 = 0x40, PIT_COMMAND = 0x43, RATE_GENERATOR = 0x34, TICKS = 5 };
enum { DIVISOR = 1193182 / 100 }; /* 100 Hz */

static volatile unsigned ticks;

int on_trap(struct trap *trap)
{
    if (trap->vector != IRQ_BASE)
        return 0;
    if (ticks < TICKS) /* on a slow machine more come before they are looked at */
        ticks++;
    pic_done();
    return 1;
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic, (void)info;
    trap_install();
    pic_install(1 << 0);
    outb(PIT_COMMAND, RATE_GENERATOR);
    outb(PIT_CHANNEL0, DIVISOR & 0xFF);
    outb(PIT_CHANNEL0, DIVISOR >> 8);
    while (ticks < TICKS)
        asm volatile("sti; hlt; cli" : : : "memory");
    print("ticks=%u\n", ticks);
    return 0;
}

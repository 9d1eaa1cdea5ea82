/*
 * Echo by interrupt: sleeps in hlt until the serial port's IRQ 4 brings a byte, and sends each
 * byte back; ends at the newline after `q`. Needs the PIC.
 */
#include "guest.h"
#include "pic.h"
#include "print.h"
#include "trap.h"

enum { SERIAL_IRQ = 4, IER_DATA = 1, MCR_OUT2 = 8 };

static volatile unsigned interrupts;
static volatile int done;
static char last;

int on_trap(struct trap *trap)
{
    if (trap->vector != IRQ_BASE + SERIAL_IRQ)
        return 0;
    interrupts++;
    while (inb(COM1_LSR) & LSR_DATA_READY) {
        char c = inb(COM1);

        put_char(c);
        if (c == '\n' && last == 'q')
            done = 1;
        last = c;
    }
    pic_done();
    return 1;
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic, (void)info;
    trap_install();
    pic_install(1 << SERIAL_IRQ);
    outb(COM1_MCR, MCR_OUT2 | 3); /* OUT2 connects the line to the PIC on a PC */
    outb(COM1_IER, IER_DATA);
    put_text("ready\n");
    while (!done)
        asm volatile("sti; hlt; cli" : : : "memory"); /* sti opens only after hlt: none is lost */
    print("interrupted=%s\n", interrupts ? "yes" : "no");
    return 0;
}

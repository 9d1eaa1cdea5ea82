/* The two 8259A interrupt controllers, remapped behind the exceptions. */
#pragma once
#include "io.h"

enum { PIC1 = 0x20, PIC2 = 0xA0, IRQ_BASE = 32, END_OF_INTERRUPT = 0x20 };

/* IRQ 0-15 as vectors 32-47, all masked but those in `open`. */
static inline void pic_install(uint16_t open)
{
    outb(PIC1, 0x11); /* ICW1: edge triggered, cascaded, ICW4 follows */
    outb(PIC2, 0x11);
    outb(PIC1 + 1, IRQ_BASE);
    outb(PIC2 + 1, IRQ_BASE + 8);
    outb(PIC1 + 1, 4); /* the second one is at IRQ 2 */
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1); /* ICW4: 8086 mode */
    outb(PIC2 + 1, 1);
    outb(PIC1 + 1, ~open);
    outb(PIC2 + 1, ~open >> 8);
}

/* IRQ 0-7 only. */
static inline void pic_done(void)
{
    outb(PIC1, END_OF_INTERRUPT);
}

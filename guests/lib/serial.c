/* COM1, polled: works in every mode, with and without an interrupt controller. */
#include "serial.h"
#include "io.h"

void put_char(char c)
{
    while (!(inb(COM1_LSR) & LSR_THR_EMPTY))
        ;
    outb(COM1, c);
}

char get_char(void)
{
    while (!(inb(COM1_LSR) & LSR_DATA_READY))
        asm volatile("pause");
    return inb(COM1);
}

void put_text(const char *text)
{
    while (*text)
        put_char(*text++);
}

void put_hex(unsigned long value)
{
    if (value > 0xF)
        put_hex(value >> 4);
    put_char("0123456789abcdef"[value & 0xF]);
}

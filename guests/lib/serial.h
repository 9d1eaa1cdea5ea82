/* COM1, polled. */
#pragma once
#include <stdint.h>

enum {
    COM1 = 0x3F8,
    COM1_IER = COM1 + 1, /* interrupt enable */
    COM1_MCR = COM1 + 4, /* modem control */
    COM1_LSR = COM1 + 5, /* line status */
    LSR_DATA_READY = 0x01,
    LSR_THR_EMPTY = 0x20,
};

void put_char(char c);
void put_text(const char *text);
void put_hex(unsigned long value);
char get_char(void);

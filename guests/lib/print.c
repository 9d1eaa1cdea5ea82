/* A printf of forty lines, in a file of its own: a boot sector has no room for it. */
#include "print.h"
#include <stdarg.h>
#include "serial.h"

static void put_digits(unsigned long long value, unsigned base, unsigned width)
{
    char digits[24];
    unsigned count = 0;

    do {
        /* 64-bit division needs libgcc on 32-bit targets, so decimal numbers are 32 bits. */
        unsigned digit = base == 16 ? value & 0xF : (uint32_t)value % 10;
        value = base == 16 ? value >> 4 : (uint32_t)value / 10;
        digits[count++] = "0123456789abcdef"[digit];
    } while (value || count < width);
    while (count)
        put_char(digits[--count]);
}

void print(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    for (; *format; format++) {
        unsigned width = 0, longs = 0;

        if (*format != '%') {
            put_char(*format);
            continue;
        }
        for (format++; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (*format - '0');
        for (; *format == 'l'; format++)
            longs++;
        if (*format == 's')
            put_text(va_arg(args, const char *));
        else if (*format == 'c')
            put_char(va_arg(args, int));
        else if (*format == 'u')
            put_digits(va_arg(args, unsigned), 10, width);
        else if (*format != 'x')
            put_char(*format);
        else if (longs == 2)
            put_digits(va_arg(args, unsigned long long), 16, width);
        else if (longs == 1)
            put_digits(va_arg(args, unsigned long), 16, width);
        else
            put_digits(va_arg(args, unsigned), 16, width);
    }
    va_end(args);
}

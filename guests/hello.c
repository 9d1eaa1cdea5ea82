/* Hello: the mode the processor is really in, and where this code was linked to run. */
#include "guest.h"

extern const char _start[]; /* the image's first byte */

static const char *mode(void)
{
    unsigned long cr0;

    asm("mov %%cr0, %0" : "=r"(cr0));
    if (!(cr0 & 1))
        return "real";
    return sizeof(void *) == 8 ? "long" : "protected";
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic, (void)info;
    put_text("hello from ");
    put_text(mode());
    put_text(" mode at 0x");
    put_hex((uintptr_t)_start);
    put_char('\n');
    return 0;
}

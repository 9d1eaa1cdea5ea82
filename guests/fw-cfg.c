/* The firmware configuration device (QEMU, docs/specs/fw_cfg.rst): signature, RAM, processors. */
#include "guest.h"
#include "print.h"

enum { SELECTOR = 0x510, DATA = 0x511 };
enum { SIGNATURE = 0, RAM_SIZE = 3, NB_CPUS = 5, NO_SUCH_ITEM = 0x3FFF };

static void select(uint16_t item)
{
    outw(SELECTOR, item);
}

static uint64_t number(uint16_t item, unsigned bytes)
{
    uint64_t value = 0;

    select(item);
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)inb(DATA) << 8 * i;
    return value;
}

int guest(uint32_t magic, uintptr_t info)
{
    char text[5] = { 0 };
    void *to = text;
    size_t count = 4;

    (void)magic, (void)info;
    select(SIGNATURE);
    asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(DATA) : "memory");
    print("signature=%s\n", text);
    print("ram_mib=%u\n", (unsigned)(number(RAM_SIZE, 8) >> 20));
    print("cpus=%u\n", (unsigned)number(NB_CPUS, 2));
    return number(NO_SUCH_ITEM, 8) ? 1 : 0;
}

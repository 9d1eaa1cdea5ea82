/*
 * BIOS: the little that a boot sector finds of one: int 10h prints a character, the BIOS data
 * area tells the base memory, and int 13h says that it is not supported.
 */
#include "guest.h"

static void teletype(char c)
{
    asm volatile("int $0x10" : : "a"(0x0E00 | (uint8_t)c), "b"(0) : "cc", "memory");
}

static int disk_is_unsupported(void)
{
    uint16_t ax = 0x0201; /* read a sector */
    uint8_t carry;

    asm volatile("int $0x13" : "+a"(ax), "=@ccc"(carry) : "d"(0x80) : "memory");
    return carry && ax >> 8 == 0x86;
}

static uint16_t base_memory_kb(void)
{
    uint16_t kb;

    asm("movw 0x413, %0" : "=r"(kb)); /* gcc takes an access near 0 for a null pointer */
    return kb;
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic, (void)info;
    for (const char *text = "hello from int 10h\r\n"; *text; text++)
        teletype(*text);
    if (!disk_is_unsupported())
        return 1;
    return base_memory_kb() == 639 ? 0 : 2;
}

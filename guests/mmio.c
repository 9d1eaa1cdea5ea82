/*
 * MMIO: an address that nothing claims reads as all ones in every size, and takes every write.
 * The exit code tells which access went wrong.
 */
#include "guest.h"

enum { HOLE = 0xD0000000, COUNT = 5 };

static int read_string(void)
{
    uint32_t words[COUNT + 1] = { 0 };
    const void *from = (const void *)(uintptr_t)HOLE;
    void *to = words;
    size_t count = COUNT;

    asm volatile("rep movsl" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    for (unsigned i = 0; i < COUNT; i++)
        if (words[i] != UINT32_MAX)
            return 0;
    return words[COUNT] == 0;
}

static void write_string(void)
{
    void *to = (void *)(uintptr_t)HOLE;
    size_t count = COUNT;

    asm volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(0) : "memory");
}

int guest(uint32_t magic, uintptr_t info)
{
    uintptr_t at = HOLE;

    (void)magic, (void)info;
    *(volatile uint8_t *)at = 1;
    *(volatile uint16_t *)at = 2;
    *(volatile uint32_t *)at = 3;
    *(volatile uint64_t *)at = 4;
    *(volatile uint64_t *)(at + 0xFFC) = 5; /* over the end of a page */
    write_string();
    if (*(volatile uint8_t *)at != UINT8_MAX)
        return 1;
    if (*(volatile uint16_t *)at != UINT16_MAX)
        return 2;
    if (*(volatile uint32_t *)at != UINT32_MAX)
        return 3;
    if (*(volatile uint64_t *)at != UINT64_MAX)
        return 4;
    if (*(volatile uint64_t *)(at + 0xFFC) != UINT64_MAX)
        return 5;
    if (!read_string())
        return 6;
    *(volatile uint32_t *)at += 1; /* a read and a write in one instruction */
    put_text("mmio is all ones\n");
    return 0;
}

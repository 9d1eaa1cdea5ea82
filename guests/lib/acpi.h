/* ACPI tables (ACPI 6.5, chapter 5): how a guest finds and checks them. */
#pragma once

#include <stdint.h>

enum { SEARCH_START = 0xE0000, SEARCH_END = 0x100000, STEP = 16, HEADER = 36, SLP_EN = 1 << 13 };

struct table {
    char signature[4];
    uint32_t length;
};

static inline uint32_t u32(const void *table, unsigned offset)
{
    return *(const volatile uint32_t *)((const char *)table + offset);
}

static inline const void *at(uint32_t address)
{
    return (const void *)(uintptr_t)address;
}

static inline int is(const void *where, const char *text)
{
    for (const char *byte = where; *text; byte++, text++)
        if (*byte != *text)
            return 0;
    return 1;
}

static inline uint8_t sum(const void *start, uint32_t length)
{
    const uint8_t *byte = start;
    uint8_t sum = 0;

    while (length--)
        sum += *byte++;
    return sum;
}

static inline const void *find_rsdp(void)
{
    for (uintptr_t address = SEARCH_START; address < SEARCH_END; address += STEP)
        if (is((const void *)address, "RSD PTR ") && !sum((const void *)address, 20))
            return (const void *)address;
    return 0;
}

/* The table that the list (entries of `width` bytes) has by that name; null if it is not sound. */
static inline const void *find(const struct table *list, unsigned width, const char *signature)
{
    for (uint32_t offset = HEADER; offset < list->length; offset += width) {
        const struct table *table = at(u32(list, offset));

        if (is(table, signature))
            return sum(table, table->length) ? 0 : table;
    }
    return 0;
}

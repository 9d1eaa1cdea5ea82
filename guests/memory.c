/*
 * Memory: writes into every page of the RAM in the memory map (from 1 MiB on, behind this image)
 * a value made of its address, then checks them all, so that a page that is missing, or two that
 * are one, show. step=N: every N KiB only, for much RAM on a slow machine.
 */
#include "guest.h"
#include "paging.h"
#include "print.h"
#include "start_info.h"

enum { PAGE = 4096, MIB = 1 << 20, MAPPED_GIB = 16 };

extern const char image_end[];
static uint64_t step;
static uint64_t pages_below, pages_above;

static uint64_t pattern(uint64_t address)
{
    return address ^ 0x5AA5F00F5AA5F00F;
}

static void fill(uint64_t address)
{
    *(volatile uint64_t *)address = pattern(address);
    *(volatile uint64_t *)(address + PAGE - 8) = ~pattern(address);
}

static void check(uint64_t address)
{
    if (*(volatile uint64_t *)address != pattern(address) ||
        *(volatile uint64_t *)(address + PAGE - 8) != ~pattern(address)) {
        print("wrong at 0x%lx\n", address);
        finish(1);
    }
    if (address >> 32)
        pages_above++;
    else
        pages_below++;
}

/* Visits one page every `step` bytes, and the last one. */
static void walk(const struct start_memory *memory, void (*visit)(uint64_t))
{
    uint64_t end = (memory->start + memory->size) & -PAGE;
    uint64_t low = ((uintptr_t)image_end + MIB) & -PAGE;
    uint64_t start = memory->start > low ? memory->start : low;

    if (memory->type != MEMORY_RAM || start >= end)
        return;
    for (uint64_t page = start; page < end - PAGE; page += step)
        visit(page);
    visit(end - PAGE);
}

int guest(uint32_t magic, uintptr_t address)
{
    const struct start_info info = *start_info(address); /* a copy: what it lies in is RAM too */
    struct start_memory memory[16];

    (void)magic;
    step = cmdline_number(start_info_cmdline(address), "step", 4) * 1024ull;
    if (info.memory_map_entries > 16)
        return 2;
    for (uint32_t i = 0; i < info.memory_map_entries; i++)
        memory[i] = ((const struct start_memory *)(uintptr_t)info.memory_map)[i];
    map_identity(MAPPED_GIB, 0);
    for (uint32_t i = 0; i < info.memory_map_entries; i++)
        walk(&memory[i], fill);
    for (uint32_t i = 0; i < info.memory_map_entries; i++)
        walk(&memory[i], check);
    print("pages_below_4g=%u\npages_above_4g=%u\n", (uint32_t)pages_below, (uint32_t)pages_above);
    return 0;
}

/* An identity map in 2 MiB pages (Intel SDM vol. 3, 4.5). */
#include "paging.h"

enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80, ENTRIES = 512, MAX_GIB = 16 };

uint64_t pml4[ENTRIES] __attribute__((aligned(4096)));
static uint64_t pdpt[ENTRIES] __attribute__((aligned(4096)));
static uint64_t directories[MAX_GIB * ENTRIES] __attribute__((aligned(4096)));

void map_identity(unsigned gib, unsigned flags)
{
    flags |= PRESENT | WRITABLE;
    for (uint64_t i = 0; i < gib * ENTRIES; i++)
        directories[i] = i << 21 | flags | LARGE;
    for (unsigned i = 0; i < gib; i++)
        pdpt[i] = (uintptr_t)&directories[i * ENTRIES] | flags;
    pml4[0] = (uintptr_t)pdpt | flags;
    asm volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");
}

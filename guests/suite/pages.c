/*
 * Paging (Intel SDM vol. 3, 4.5 to 4.8). The page under test is the first of slot 2 of the top
 * table, which the boot protocol leaves empty: 1 TiB.
 */
#include "suite.h"
#include "trap.h"

enum { PRESENT = 1, WRITABLE = 2, ACCESSED = 0x20, DIRTY = 0x40, LARGE = 0x80, CR0_WP = 1 << 16, SLOT = 2, ENTRIES = 512 };
enum { ERROR_PRESENT = 1, ERROR_WRITE = 2 };

#define AREA ((volatile uint64_t *)((uint64_t)SLOT << 39))

static uint64_t upper[ENTRIES] __attribute__((aligned(4096)));
static uint64_t directory[ENTRIES] __attribute__((aligned(4096)));
static uint64_t table[ENTRIES] __attribute__((aligned(4096)));
static volatile uint64_t frame[2][ENTRIES] __attribute__((aligned(4096)));

static uint64_t *top(void)
{
    uint64_t cr3;

    asm volatile("mov %%cr3, %0" : "=r"(cr3));
    return (uint64_t *)(cr3 & ~0xFFFull);
}

static uint64_t address(const volatile void *it)
{
    return (uintptr_t)it;
}

static void flush(void)
{
    asm volatile("invlpg (%0)" : : "r"(AREA) : "memory");
}

static void unmap(void)
{
    top()[SLOT] = 0;
    flush();
}

static void map(uint64_t entry)
{
    top()[SLOT] = address(upper) | PRESENT | WRITABLE;
    upper[0] = address(directory) | PRESENT | WRITABLE;
    directory[0] = address(table) | PRESENT | WRITABLE;
    table[0] = entry;
    flush();
}

static uint64_t cr2(void)
{
    uint64_t value;

    asm volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}

/* Each reports by trap_vector. */
static void try_read(void)
{
    asm volatile(GUARDED("movq (%0), %%rax") : : "r"(AREA) : "rax", "memory");
}

static void try_write(void)
{
    asm volatile(GUARDED("movq $5, (%0)") : : "r"(AREA) : "memory");
}

static void write_protect(int on)
{
    uint64_t cr0;

    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    asm volatile("mov %0, %%cr0" : : "r"(on ? cr0 | CR0_WP : cr0 & ~(uint64_t)CR0_WP) : "memory");
}

TEST(an_unmapped_page_faults)
{
    unmap();
    try_read();
    CHECK(trap_vector == PAGE_FAULT);
}

TEST(cr2_is_the_address)
{
    unmap();
    asm volatile(GUARDED("movb %%al, 0x123(%0)") : : "r"(AREA) : "memory");
    CHECK(cr2() == address(AREA) + 0x123);
}

TEST(a_mapped_page_reads)
{
    frame[0][0] = 99;
    map(address(frame[0]) | PRESENT);
    CHECK(*AREA == 99);
}

TEST(a_mapped_page_writes)
{
    map(address(frame[0]) | PRESENT | WRITABLE);
    AREA[3] = 12;
    CHECK(frame[0][3] == 12);
}

TEST(a_page_moves_to_another_frame)
{
    frame[0][0] = 1;
    frame[1][0] = 2;
    map(address(frame[0]) | PRESENT);
    CHECK(*AREA == 1);
    map(address(frame[1]) | PRESENT);
    CHECK(*AREA == 2);
}

TEST(a_page_goes_away)
{
    frame[0][0] = 6;
    map(address(frame[0]) | PRESENT);
    CHECK(*AREA == 6);
    map(0);
    try_read();
    CHECK(trap_vector == PAGE_FAULT);
}

TEST(an_entry_that_is_not_present_is_free_for_use)
{
    map(~0ull << 12 & ~(1ull << 63));
    try_read();
    CHECK(trap_vector == PAGE_FAULT && table[0] == (~0ull << 12 & ~(1ull << 63)));
}

TEST(a_read_only_page_refuses_under_wp)
{
    frame[0][0] = 7;
    map(address(frame[0]) | PRESENT);
    write_protect(1);
    try_write();
    CHECK(trap_vector == PAGE_FAULT && frame[0][0] == 7);
}

TEST(without_wp_ring_0_writes_it)
{
    map(address(frame[0]) | PRESENT);
    write_protect(0);
    try_write();
    CHECK(trap_vector == NO_TRAP && frame[0][0] == 5);
}

TEST(a_read_sets_accessed)
{
    map(address(frame[0]) | PRESENT | WRITABLE);
    try_read();
    CHECK((table[0] & (ACCESSED | DIRTY)) == ACCESSED);
}

TEST(a_write_sets_dirty)
{
    map(address(frame[0]) | PRESENT | WRITABLE);
    try_write();
    CHECK((table[0] & (ACCESSED | DIRTY)) == (ACCESSED | DIRTY));
}

TEST(a_large_page)
{
    top()[SLOT] = address(upper) | PRESENT | WRITABLE;
    upper[0] = address(directory) | PRESENT | WRITABLE;
    directory[0] = 0 | LARGE | PRESENT | WRITABLE; /* the first 2 MiB once more */
    flush();
    frame[0][7] = 70;
    CHECK(*(AREA + address(&frame[0][7]) / 8) == 70);
}

TEST(two_addresses_of_one_frame)
{
    map(address(frame[1]) | PRESENT | WRITABLE);
    table[1] = table[0];
    AREA[0] = 1;
    AREA[ENTRIES + 1] = 2;
    CHECK(AREA[ENTRIES] == 1 && AREA[1] == 2);
}

TEST(a_copy_of_the_top_table_does_as_well)
{
    uint64_t *old = top(), *now, it;

    for (unsigned i = 0; i < 4; i++)
        upper[i] = old[i];
    frame[0][1] = 3;
    asm volatile("mov %0, %%cr3" : : "r"(upper) : "memory");
    now = top();
    it = frame[0][1];
    asm volatile("mov %0, %%cr3" : : "r"(old) : "memory");
    CHECK(now == upper && it == 3);
}

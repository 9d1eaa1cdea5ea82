/* Locked instructions and fences. */
#include "suite.h"

static volatile uint64_t cell;
static volatile uint32_t cells[4];

TEST(lock_add)
{
    cell = 40;
    asm volatile("lock addq %1, %0" : "+m"(cell) : "r"(opaque(2)) : "cc");
    CHECK(cell == 42);
}

TEST(lock_sub_sets_zero)
{
    int zero;

    cell = 5;
    asm volatile("lock subq %2, %0" : "+m"(cell), "=@ccz"(zero) : "r"(opaque(5)));
    CHECK(zero && cell == 0);
}

TEST(lock_inc_and_dec)
{
    cells[0] = cells[2] = 0;
    cells[1] = 7;
    asm volatile("lock incl %0\n lock incl %0\n lock decl %0" : "+m"(cells[1]) : : "cc");
    CHECK(cells[1] == 8 && cells[0] == 0 && cells[2] == 0);
}

TEST(lock_or_and_and)
{
    cells[0] = 0xF0;
    asm volatile("lock orl $0x0F, %0\n lock andl $0x3C, %0" : "+m"(cells[0]) : : "cc");
    CHECK(cells[0] == 0x3C);
}

TEST(lock_xor)
{
    cells[3] = 0xFFFFFFFF;
    asm volatile("lock xorl %1, %0" : "+m"(cells[3]) : "r"((uint32_t)opaque(0x0F0F0F0F)) : "cc");
    CHECK(cells[3] == 0xF0F0F0F0);
}

TEST(lock_not_and_neg)
{
    cell = 9;
    asm volatile("lock notq %0\n lock negq %0" : "+m"(cell) : : "cc");
    CHECK(cell == 10);
}

TEST(xchg_with_memory)
{
    uint64_t it = opaque(1);

    cell = 2;
    asm volatile("xchgq %0, %1" : "+r"(it), "+m"(cell));
    CHECK(it == 2 && cell == 1);
}

TEST(lock_xadd)
{
    uint64_t it = opaque(10);

    cell = 32;
    asm volatile("lock xaddq %0, %1" : "+r"(it), "+m"(cell) : : "cc");
    CHECK(it == 32 && cell == 42);
}

TEST(cmpxchg_succeeds)
{
    uint64_t expected = opaque(3);
    int zero;

    cell = 3;
    asm volatile("lock cmpxchgq %3, %1" : "+a"(expected), "+m"(cell), "=@ccz"(zero) : "r"(opaque(4)));
    CHECK(zero && cell == 4 && expected == 3);
}

TEST(cmpxchg_fails_and_loads)
{
    uint64_t expected = opaque(3);
    int zero;

    cell = 5;
    asm volatile("lock cmpxchgq %3, %1" : "+a"(expected), "+m"(cell), "=@ccz"(zero) : "r"(opaque(4)));
    CHECK(!zero && cell == 5 && expected == 5);
}

TEST(cmpxchg8b_succeeds)
{
    uint32_t low = 1, high = 2;
    int zero;

    cell = 2ull << 32 | 1;
    asm volatile("lock cmpxchg8b %1" : "=@ccz"(zero), "+m"(cell), "+a"(low), "+d"(high) : "b"(3), "c"(4));
    CHECK(zero && cell == (4ull << 32 | 3));
}

TEST(lock_bts_in_memory)
{
    int carry;

    cells[2] = 0;
    asm volatile("lock btsl %2, %0" : "+m"(cells[0]), "=@ccc"(carry) : "r"(70) : "memory");
    CHECK(!carry && cells[2] == 1 << 6);
}

TEST(lock_btr_in_memory)
{
    int carry;

    cell = 1ull << 33;
    asm volatile("lock btrq %2, %0" : "+m"(cell), "=@ccc"(carry) : "r"(opaque(33)));
    CHECK(carry && cell == 0);
}

TEST(lock_across_a_cache_line)
{
    static uint8_t bytes[128] __attribute__((aligned(64)));
    volatile uint64_t *it = (void *)(bytes + 60);

    asm volatile("lock addq %1, %0" : "+m"(*it) : "r"(opaque(0x0102030405060708)) : "cc");
    CHECK(bytes[60] == 8 && bytes[67] == 1);
}

TEST(fences_pass)
{
    cell = 1;
    asm volatile("mfence\n lfence\n sfence" : : : "memory");
    CHECK(cell == 1);
}

TEST(builtin_fetch_add)
{
    cell = 7;
    CHECK(__atomic_fetch_add(&cell, opaque(3), __ATOMIC_SEQ_CST) == 7 && cell == 10);
}

TEST(spinlock)
{
    static uint8_t lock;

    CHECK(!__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE));
    CHECK(__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE));
    __atomic_clear(&lock, __ATOMIC_RELEASE);
    CHECK(!__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE));
}

/* String instructions, with REP and without, forwards and backwards. */
#include "suite.h"

enum { SIZE = 64 };

static uint8_t source[SIZE], target[SIZE] __attribute__((aligned(8)));

static void fill(void)
{
    for (unsigned i = 0; i < 16; i++)
        source[i] = i + 1;
    for (unsigned i = 0; i < SIZE / 8; i++)
        ((uint64_t *)target)[i] = 0;
}

static int same(const uint8_t *a, const uint8_t *b, size_t count)
{
    asm volatile("cmp %%rcx, %%rcx\n repe cmpsb" : "+S"(a), "+D"(b), "+c"(count), "=@cce"(count) : : "memory");
    return count;
}

TEST(movsb_copies)
{
    const uint8_t *from = source;
    uint8_t *to = target;
    uint64_t count = 16;

    fill();
    asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    CHECK(count == 0 && from == source + 16 && to == target + 16);
    CHECK(target[0] == 1 && target[15] == 16 && target[16] == 0);
}

TEST(movsq_copies_eight_at_a_time)
{
    const uint8_t *from = source;
    uint8_t *to = target;
    uint64_t count = 2;

    fill();
    asm volatile("rep movsq" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    CHECK(from == source + 16 && target[7] == 8 && target[15] == 16);
}

TEST(movsw_without_rep_moves_one)
{
    const uint8_t *from = source;
    uint8_t *to = target;

    fill();
    asm volatile("movsw" : "+S"(from), "+D"(to) : : "memory");
    CHECK(to == target + 2 && target[1] == 2 && target[2] == 0);
}

TEST(movsb_backwards)
{
    const uint8_t *from = source + 4;
    uint8_t *to = source + 6;
    uint64_t count = 4;

    fill();
    asm volatile("std\n rep movsb\n cld" : "+S"(from), "+D"(to), "+c"(count) : : "memory", "cc");
    CHECK(from == source && source[2] == 3 && source[3] == 2 && source[6] == 5);
}

TEST(movsb_overlapping_repeats_a_byte)
{
    const uint8_t *from = source;
    uint8_t *to = source + 1;
    uint64_t count = 8;

    fill();
    asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    CHECK(source[8] == 1 && source[9] == 10);
}

TEST(rep_with_count_zero_does_nothing)
{
    const uint8_t *from = source;
    uint8_t *to = target;
    uint64_t count = opaque(0);

    asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    CHECK(from == source && to == target && count == 0);
}

TEST(stosb_fills)
{
    uint8_t *to = target + 1;
    uint64_t count = 5;

    fill();
    asm volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(0xAB) : "memory");
    CHECK(target[0] == 0 && target[1] == 0xAB && target[5] == 0xAB && target[6] == 0);
}

TEST(stosq_fills)
{
    uint8_t *to = target;
    uint64_t count = 4;

    fill();
    asm volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(0x0102030405060708) : "memory");
    CHECK(to == target + 32 && target[0] == 8 && target[31] == 1 && target[32] == 0);
}

TEST(stosl_backwards)
{
    uint8_t *to = target + 8;
    uint64_t count = 2;

    fill();
    asm volatile("std\n rep stosl\n cld" : "+D"(to), "+c"(count) : "a"(~0u) : "memory", "cc");
    CHECK(to == target && target[3] == 0 && target[4] == 0xFF && target[11] == 0xFF);
}

TEST(lodsb_reads_one)
{
    const uint8_t *from = source;
    uint64_t it = ~0ull;

    fill();
    asm volatile("lodsb" : "+S"(from), "+a"(it) : : "memory");
    CHECK(from == source + 1 && it == 0xFFFFFFFFFFFFFF01);
}

TEST(lodsl_clears_the_upper_half)
{
    const uint8_t *from = source;
    uint64_t it = ~0ull;

    fill();
    asm volatile("lodsl" : "+S"(from), "+a"(it) : : "memory");
    CHECK(it == 0x04030201);
}

TEST(scasb_finds)
{
    const uint8_t *at = source;
    uint64_t count = SIZE;

    fill();
    asm volatile("repne scasb" : "+D"(at), "+c"(count) : "a"(9) : "memory", "cc");
    CHECK(at == source + 9 && count == SIZE - 9);
}

TEST(scasb_reaches_the_end)
{
    const uint8_t *at = source;
    uint64_t count = 16;
    int found;

    fill();
    asm volatile("repne scasb" : "+D"(at), "+c"(count), "=@cce"(found) : "a"(200) : "memory");
    CHECK(!found && count == 0 && at == source + 16);
}

TEST(scasb_skips_what_is_equal)
{
    const uint8_t *at = target;
    uint64_t count = SIZE;

    fill();
    target[20] = 1;
    asm volatile("repe scasb" : "+D"(at), "+c"(count) : "a"(0) : "memory", "cc");
    CHECK(at == target + 21);
}

TEST(cmpsb_equal)
{
    fill();
    CHECK(same(source, source, 16));
}

TEST(cmpsb_stops_at_the_difference)
{
    const uint8_t *a = source, *b = target;
    uint64_t count = 16;

    fill();
    target[0] = 1;
    target[1] = 2;
    asm volatile("repe cmpsb" : "+S"(a), "+D"(b), "+c"(count) : : "memory", "cc");
    CHECK(a == source + 3 && count == 13);
}

TEST(cmpsw_orders)
{
    static const uint16_t low = 0x1200, high = 0x1201;
    const uint16_t *a = &low, *b = &high;
    int below;

    asm volatile("cmpsw" : "+S"(a), "+D"(b), "=@ccb"(below) : : "memory");
    CHECK(below);
}

TEST(xlat_looks_up)
{
    uint64_t index = opaque(6);

    fill();
    asm volatile("xlatb" : "+a"(index) : "b"(source) : "memory");
    CHECK(index == 7);
}

/* Integer instructions: the result and the flags (Intel SDM vol. 2). */
#include "suite.h"

enum { ARITHMETIC = CF | PF | ZF | SF | OF, SHIFTS = CF | PF | ZF | SF, NOTHING = 0 };

/* A test of `instruction operand, value`, entered with the carry flag as `carry` says. */
#define BINARY(name, instruction, type, value, operand, carry, result, mask, expected)            \
    TEST(name)                                                                                    \
    {                                                                                             \
        type it = (type)opaque(value);                                                            \
        uint64_t flags;                                                                           \
                                                                                                  \
        asm volatile("push %3\n popfq\n" instruction " %2, %0\n pushfq\n pop %1"                  \
                     : "+r"(it), "=&r"(flags)                                                     \
                     : "r"((type)opaque(operand)), "r"((uint64_t)(2 | (carry)))                   \
                     : "cc", "memory");                                                           \
        CHECK(it == (type)(result));                                                              \
        CHECK((flags & (mask)) == (expected));                                                    \
    }

/* The same with a count in CL. */
#define SHIFT(name, instruction, type, value, count, carry, result, mask, expected)               \
    TEST(name)                                                                                    \
    {                                                                                             \
        type it = (type)opaque(value);                                                            \
        uint64_t flags;                                                                           \
                                                                                                  \
        asm volatile("push %3\n popfq\n" instruction " %%cl, %0\n pushfq\n pop %1"                \
                     : "+r"(it), "=&r"(flags)                                                     \
                     : "c"((uint8_t)opaque(count)), "r"((uint64_t)(2 | (carry)))                  \
                     : "cc", "memory");                                                           \
        CHECK(it == (type)(result));                                                              \
        CHECK((flags & (mask)) == (expected));                                                    \
    }

#define UNARY(name, instruction, type, value, carry, result, mask, expected)                      \
    TEST(name)                                                                                    \
    {                                                                                             \
        type it = (type)opaque(value);                                                            \
        uint64_t flags;                                                                           \
                                                                                                  \
        asm volatile("push %2\n popfq\n" instruction " %0\n pushfq\n pop %1"                      \
                     : "+r"(it), "=&r"(flags)                                                     \
                     : "r"((uint64_t)(2 | (carry)))                                               \
                     : "cc", "memory");                                                           \
        CHECK(it == (type)(result));                                                              \
        CHECK((flags & (mask)) == (expected));                                                    \
    }

BINARY(add_8_wraps, "addb", uint8_t, 0xFF, 1, 0, 0, ARITHMETIC, CF | PF | ZF)
BINARY(add_8_overflows, "addb", uint8_t, 0x7F, 1, 0, 0x80, ARITHMETIC, SF | OF)
BINARY(add_32_overflows, "addl", uint32_t, 0x7FFFFFFF, 1, 0, 0x80000000, ARITHMETIC, PF | SF | OF)
BINARY(add_64_wraps, "addq", uint64_t, ~0ull, 1, 0, 0, ARITHMETIC, CF | PF | ZF)
BINARY(add_64_crosses_32_bits, "addq", uint64_t, 0xFFFFFFFF, 1, 0, 1ull << 32, ARITHMETIC, PF)
BINARY(adc_takes_the_carry, "adcq", uint64_t, 5, 6, 1, 12, ARITHMETIC, PF)
BINARY(adc_carries_on, "adcl", uint32_t, 0xFFFFFFFF, 0, 1, 0, ARITHMETIC, CF | PF | ZF)
BINARY(sub_8_borrows, "subb", uint8_t, 0, 1, 0, 0xFF, ARITHMETIC, CF | PF | SF)
BINARY(sub_8_overflows, "subb", uint8_t, 0x80, 1, 0, 0x7F, ARITHMETIC, OF)
BINARY(sub_64_overflows, "subq", uint64_t, 1ull << 63, 1, 0, ~0ull >> 1, ARITHMETIC, PF | OF)
BINARY(sbb_takes_the_borrow, "sbbq", uint64_t, 10, 3, 1, 6, ARITHMETIC, PF)
BINARY(sbb_borrows_on, "sbbl", uint32_t, 0, 0, 1, 0xFFFFFFFF, ARITHMETIC, CF | PF | SF)
BINARY(cmp_equal, "cmpq", uint64_t, 77, 77, 0, 77, ARITHMETIC, PF | ZF)
BINARY(cmp_below, "cmpl", uint32_t, 1, 0x80000000, 0, 1, ARITHMETIC, CF | SF | OF)
BINARY(and_clears_carry, "andq", uint64_t, 0xF0F0, 0x00FF, 1, 0x00F0, ARITHMETIC, PF)
BINARY(xor_self_inverse, "xorq", uint64_t, 0x123456789ABCDEF0, 0x123456789ABCDEF0, 1, 0, ARITHMETIC, PF | ZF)
BINARY(test_leaves_its_operand, "testb", uint8_t, 0x81, 0x80, 1, 0x81, ARITHMETIC, SF)
BINARY(bt_32, "btl", uint32_t, 0x100, 8, 0, 0x100, CF, CF)
BINARY(bt_wraps_its_index, "btl", uint32_t, 0x100, 41, 1, 0x100, CF, NOTHING)
BINARY(bts_64, "btsq", uint64_t, 0, 63, 1, 1ull << 63, CF, NOTHING)
BINARY(btr_64, "btrq", uint64_t, 1ull << 40, 40, 0, 0, CF, CF)
BINARY(btc_16, "btcw", uint16_t, 0x8000, 15, 0, 0, CF, CF)
BINARY(bsf_finds_the_lowest, "bsfl", uint32_t, 0, 0x50, 0, 4, ZF, NOTHING)
BINARY(bsr_finds_the_highest, "bsrq", uint64_t, 0, 1ull << 45 | 7, 0, 45, ZF, NOTHING)
BINARY(bsf_of_zero, "bsfq", uint64_t, 9, 0, 0, it, ZF, ZF)
BINARY(imul_32_fits, "imull", uint32_t, 1000, -3, 0, -3000, CF | OF, NOTHING)
BINARY(imul_32_overflows, "imull", uint32_t, 0x10000, 0x10000, 0, 0, CF | OF, CF | OF)
BINARY(cmov_taken, "cmovcq", uint64_t, 1, 2, 1, 2, CF, CF)
BINARY(cmov_not_taken, "cmovcq", uint64_t, 1, 2, 0, 1, CF, NOTHING)
BINARY(cmov_32_clears_the_upper_half, "cmovcl", uint32_t, 1, 2, 0, 1, CF, NOTHING)

UNARY(inc_8_overflows, "incb", uint8_t, 0x7F, 0, 0x80, ARITHMETIC, SF | OF)
UNARY(inc_keeps_the_carry, "incq", uint64_t, ~0ull, 1, 0, ARITHMETIC, CF | PF | ZF)
UNARY(dec_32_overflows, "decl", uint32_t, 0x80000000, 0, 0x7FFFFFFF, ARITHMETIC, PF | OF)
UNARY(neg_of_zero, "negq", uint64_t, 0, 1, 0, ARITHMETIC, PF | ZF)
UNARY(neg_of_the_least, "negb", uint8_t, 0x80, 0, 0x80, ARITHMETIC, CF | SF | OF)
UNARY(not_changes_no_flag, "notl", uint32_t, 0x0F0F0F0F, 1, 0xF0F0F0F0, ARITHMETIC, CF)
UNARY(bswap_32, "bswapl", uint32_t, 0x12345678, 0, 0x78563412, NOTHING, NOTHING)
UNARY(bswap_64, "bswapq", uint64_t, 0x0123456789ABCDEF, 0, 0xEFCDAB8967452301, NOTHING, NOTHING)
UNARY(setc, "setc", uint8_t, 9, 1, 1, CF, CF)

SHIFT(shl_8_carries, "shlb", uint8_t, 0x81, 1, 0, 2, SHIFTS, CF)
SHIFT(shl_64_by_63, "shlq", uint64_t, 3, 63, 0, 1ull << 63, SHIFTS, CF | PF | SF)
SHIFT(shl_32_masks_its_count, "shll", uint32_t, 5, 32, 1, 5, CF, CF)
SHIFT(shr_64, "shrq", uint64_t, 1ull << 63, 60, 0, 8, SHIFTS, NOTHING)
SHIFT(sar_keeps_the_sign, "sarl", uint32_t, 0x80000000, 31, 0, 0xFFFFFFFF, SHIFTS, PF | SF)
SHIFT(sar_8, "sarb", uint8_t, 0x85, 2, 0, 0xE1, SHIFTS, PF | SF)
SHIFT(ror_32, "rorl", uint32_t, 1, 1, 0, 0x80000000, CF, CF)
SHIFT(rol_64, "rolq", uint64_t, 0x8000000000000001, 1, 0, 3, CF, CF)
SHIFT(rcl_16_through_carry, "rclw", uint16_t, 0x8000, 1, 1, 1, CF, CF)
SHIFT(rcr_8_through_carry, "rcrb", uint8_t, 1, 1, 0, 0, CF, CF)

TEST(shld_64)
{
    uint64_t high = opaque(0x00FF), low = opaque(0xABull << 56);

    asm("shldq $8, %1, %0" : "+r"(high) : "r"(low) : "cc");
    CHECK(high == 0xFFAB);
}

TEST(shrd_32)
{
    uint32_t low = opaque(0x12345678), high = opaque(0xABC);

    asm("shrdl $12, %1, %0" : "+r"(low) : "r"(high) : "cc");
    CHECK(low == 0xABC12345);
}

TEST(mul_64_is_128_bits_wide)
{
    uint64_t low = opaque(~0ull), high;

    asm("mulq %2" : "+a"(low), "=d"(high) : "r"(opaque(~0ull)) : "cc");
    CHECK(low == 1 && high == ~0ull - 1);
}

TEST(mul_8_fills_ax)
{
    uint16_t product = (uint16_t)opaque(200);

    asm("mulb %1" : "+a"(product) : "r"((uint8_t)opaque(200)) : "cc");
    CHECK(product == 40000);
}

TEST(imul_one_operand_is_signed)
{
    int64_t low = (int64_t)opaque(-7), high;

    asm("imulq %2" : "+a"(low), "=d"(high) : "r"(opaque(6)) : "cc");
    CHECK(low == -42 && high == -1);
}

TEST(div_128_by_64)
{
    uint64_t low = opaque(5), high = opaque(1);

    asm("divq %2" : "+a"(low), "+d"(high) : "r"(opaque(1ull << 32)) : "cc");
    CHECK(low == 1ull << 32 && high == 5);
}

TEST(div_8_quotient_and_rest)
{
    uint16_t it = (uint16_t)opaque(1000);

    asm("divb %1" : "+a"(it) : "r"((uint8_t)opaque(7)) : "cc");
    CHECK(it == (6 << 8 | 142));
}

TEST(idiv_rounds_towards_zero)
{
    int32_t low = (int32_t)opaque(-7), high = -1;

    asm("idivl %2" : "+a"(low), "+d"(high) : "r"((int32_t)opaque(2)) : "cc");
    CHECK(low == -3 && high == -1);
}

TEST(movzx_8)
{
    uint64_t it = ~0ull;

    asm("movzbl %1, %k0" : "+r"(it) : "r"((uint8_t)opaque(0xF0)));
    CHECK(it == 0xF0);
}

TEST(movsx_8_to_64)
{
    int64_t it;

    asm("movsbq %1, %0" : "=r"(it) : "r"((uint8_t)opaque(0xF0)));
    CHECK(it == -16);
}

TEST(movsxd)
{
    int64_t it;

    asm("movslq %1, %0" : "=r"(it) : "r"((uint32_t)opaque(0x80000000)));
    CHECK(it == -0x80000000ll);
}

TEST(cbw_cwde_cdqe)
{
    int64_t it = (int64_t)opaque(0x80);

    asm("cbw\n cwde\n cdqe" : "+a"(it));
    CHECK(it == -128);
}

TEST(cqo_spreads_the_sign)
{
    uint64_t high;

    asm("cqo" : "=d"(high) : "a"(opaque(1ull << 63)));
    CHECK(high == ~0ull);
}

TEST(a_32_bit_result_clears_the_upper_half)
{
    uint64_t it = opaque(~0ull);

    asm("movl $1, %k0" : "+r"(it));
    CHECK(it == 1);
}

TEST(a_16_bit_result_does_not)
{
    uint64_t it = opaque(~0ull);

    asm("movw $1, %w0" : "+r"(it));
    CHECK(it == 0xFFFFFFFFFFFF0001);
}

TEST(lea_adds_and_scales)
{
    uint64_t it;

    asm("leaq 7(%1,%2,8), %0" : "=r"(it) : "r"(opaque(100)), "r"(opaque(5)));
    CHECK(it == 147);
}

TEST(high_byte_registers)
{
    uint64_t it = opaque(0x1234);

    asm("xchgb %%al, %%ah" : "+a"(it));
    CHECK(it == 0x3412);
}

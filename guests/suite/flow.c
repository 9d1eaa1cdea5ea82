/* Jumps, calls and the stack. */
#include "suite.h"

TEST(push_and_pop)
{
    uint64_t it;

    asm volatile("pushq %1\n popq %0" : "=r"(it) : "r"(opaque(0x1122334455667788)) : "memory");
    CHECK(it == 0x1122334455667788);
}

TEST(push_imm8_extends_its_sign)
{
    int64_t it;

    asm volatile("pushq $-5\n popq %0" : "=r"(it) : : "memory");
    CHECK(it == -5);
}

TEST(push_moves_rsp_by_eight)
{
    uint64_t before, after;

    asm volatile("movq %%rsp, %0\n pushq %0\n movq %%rsp, %1\n popq %0" : "=&r"(before), "=&r"(after) : : "memory");
    CHECK(before - after == 8);
}

TEST(push_rsp_pushes_the_old_one)
{
    uint64_t before, pushed;

    asm volatile("movq %%rsp, %0\n pushq %%rsp\n popq %1" : "=&r"(before), "=&r"(pushed) : : "memory");
    CHECK(pushed == before);
}

TEST(push_16_bits)
{
    uint64_t before, after;

    asm volatile("movq %%rsp, %0\n pushw $1\n movq %%rsp, %1\n addq $2, %%rsp"
                 : "=&r"(before), "=&r"(after) : : "memory", "cc");
    CHECK(before - after == 2);
}

TEST(pushf_and_popf)
{
    uint64_t flags;

    asm volatile("pushq $0xC97\n popfq\n pushfq\n popq %0\n cld" : "=r"(flags) : : "memory", "cc");
    CHECK(flags == (2 | CF | PF | AF | SF | DF | OF));
}

TEST(lahf_and_sahf)
{
    uint64_t flags = opaque((CF | ZF) << 8);

    asm volatile("sahf\n setc %%al\n lahf" : "+a"(flags) : : "cc");
    CHECK(flags == (((CF | ZF | 2) << 8) | 1));
}

TEST(call_pushes_the_next_address)
{
    uint64_t pushed, expected;

    asm volatile("call 1f\n1: popq %0\n leaq 1b(%%rip), %1" : "=r"(pushed), "=r"(expected) : : "memory");
    CHECK(pushed == expected);
}

TEST(indirect_call_and_return)
{
    uint64_t it = 0;

    asm volatile("leaq 2f(%%rip), %%rcx\n call *%%rcx\n jmp 3f\n2: movl $42, %k0\n ret\n3:"
                 : "+a"(it) : : "rcx", "memory");
    CHECK(it == 42);
}

TEST(ret_imm_drops_arguments)
{
    uint64_t before, after;

    asm volatile("movq %%rsp, %0\n pushq $1\n pushq $2\n call 1f\n jmp 2f\n1: ret $16\n2: movq %%rsp, %1"
                 : "=&r"(before), "=&r"(after) : : "memory");
    CHECK(before == after);
}

TEST(enter_and_leave)
{
    uint64_t before, inside, after;

    asm volatile("movq %%rsp, %0\n enter $32, $0\n movq %%rsp, %1\n leave\n movq %%rsp, %2"
                 : "=&r"(before), "=&r"(inside), "=&r"(after) : : "memory");
    CHECK(before - inside == 40 && before == after);
}

TEST(loop_counts_down)
{
    uint64_t count = opaque(7), turns = 0;

    asm volatile("1: incq %1\n loop 1b" : "+c"(count), "+r"(turns) : : "cc");
    CHECK(count == 0 && turns == 7);
}

TEST(loopne_stops_early)
{
    uint64_t count = opaque(9), it = 0;

    asm volatile("1: incq %1\n cmpq $3, %1\n loopne 1b" : "+c"(count), "+r"(it) : : "cc");
    CHECK(count == 6 && it == 3);
}

TEST(jrcxz_jumps_on_zero)
{
    uint64_t it = 1;

    asm volatile("jrcxz 1f\n movq $2, %0\n1:" : "+r"(it) : "c"(opaque(0)));
    CHECK(it == 1);
}

TEST(jecxz_looks_at_half)
{
    uint64_t it = 1;

    asm volatile("jecxz 1f\n movq $2, %0\n1:" : "+r"(it) : "c"(opaque(1ull << 32)));
    CHECK(it == 1);
}

TEST(jump_table)
{
    uint64_t it = 0;

    asm volatile("leaq 9f(%%rip), %%rcx\n jmp *(%%rcx,%1,8)\n .balign 8\n9: .quad 1f, 2f\n"
                 "1: movl $10, %k0\n jmp 3f\n2: movl $20, %k0\n3:"
                 : "+a"(it) : "d"(opaque(1)) : "rcx", "memory");
    CHECK(it == 20);
}

TEST(signed_and_unsigned_jumps_differ)
{
    uint64_t above = 0, greater = 0;

    asm volatile("cmpq %2, %3\n jbe 1f\n incq %0\n1: cmpq %2, %3\n jle 2f\n incq %1\n2:"
                 : "+r"(above), "+r"(greater) : "r"(opaque(1)), "r"(opaque(-1)) : "cc");
    CHECK(above == 1 && greater == 0);
}

static uint64_t ackermann(uint64_t m, uint64_t n)
{
    if (!m)
        return n + 1;
    return ackermann(m - 1, n ? ackermann(m, n - 1) : 1);
}

TEST(recursion)
{
    CHECK(ackermann(opaque(2), opaque(2)) == 7);
}

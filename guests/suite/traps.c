/* Exceptions: which vector, which error code, and where the handler finds the guest. */
#include "suite.h"
#include "trap.h"

enum { DIVIDE_ERROR = 0, STACK_FAULT = 12, NOT_PRESENT = 11, NOWHERE = 0x7E };

static struct trap seen; /* the last trap */

int on_trap(struct trap *trap)
{
    seen = *trap;
    return 0; /* trap.c skips the instruction */
}

TEST(division_by_zero)
{
    asm volatile(GUARDED("divl %0") : : "r"((uint32_t)opaque(0)), "a"(1), "d"(0) : "cc", "memory");
    CHECK(trap_vector == DIVIDE_ERROR);
}

TEST(quotient_too_large)
{
    asm volatile(GUARDED("divb %0") : : "r"((uint8_t)opaque(1)), "a"(0x100) : "cc", "memory");
    CHECK(trap_vector == DIVIDE_ERROR);
}

TEST(idiv_of_the_least_by_minus_one)
{
    asm volatile(GUARDED("idivl %0") : : "r"((uint32_t)opaque(-1)), "a"(1u << 31), "d"(-1) : "cc", "memory");
    CHECK(trap_vector == DIVIDE_ERROR);
}

TEST(ud2)
{
    asm volatile(GUARDED("ud2") : : : "memory");
    CHECK(trap_vector == INVALID_OPCODE && seen.error == 0);
}

TEST(a_lock_on_a_register_is_invalid)
{
    asm volatile(GUARDED(".byte 0xF0, 0x01, 0xC0") : : : "cc", "memory"); /* lock add eax, eax */
    CHECK(trap_vector == INVALID_OPCODE);
}

TEST(a_faulting_instruction_changes_nothing)
{
    uint64_t it = opaque(77);

    asm volatile(GUARDED("movq (%1), %0") : "+r"(it) : "r"(opaque(0x8000000000000000)) : "memory");
    CHECK(it == 77 && trap_vector == GENERAL_PROTECTION);
}

TEST(non_canonical_address_has_error_code_zero)
{
    asm volatile(GUARDED("movb (%0), %%al") : : "r"(opaque(0x0000800000000000)) : "rax", "memory");
    CHECK(trap_vector == GENERAL_PROTECTION && seen.error == 0);
}

TEST(a_selector_beyond_the_gdt_is_the_error_code)
{
    asm volatile(GUARDED("movw %w0, %%es") : : "r"(opaque(NOWHERE & ~3)) : "memory");
    CHECK(trap_vector == GENERAL_PROTECTION && seen.error == (NOWHERE & ~3));
}

TEST(the_handler_sees_the_faulting_address)
{
    uint64_t expected;

    asm volatile("leaq 771f(%%rip), %0\n" GUARDED("ud2") : "=&r"(expected) : : "memory");
    CHECK(seen.rip == expected);
}

TEST(the_handler_sees_ring_0)
{
    asm volatile(GUARDED("ud2") : : : "memory");
    CHECK(seen.cs == KERNEL_CODE);
}

TEST(the_handler_sees_the_stack)
{
    uint64_t rsp;

    asm volatile("movq %%rsp, %0\n" GUARDED("ud2") : "=&r"(rsp) : : "memory");
    CHECK(seen.rsp == rsp);
}

TEST(iret_brings_the_flags_back)
{
    uint64_t flags;

    asm volatile("pushq $0x8C3\n popfq\n" GUARDED("ud2") "pushfq\n popq %0" : "=r"(flags) : : "memory", "cc");
    CHECK((flags & (CF | ZF | SF | OF)) == (CF | ZF | SF | OF));
}

TEST(a_handler_keeps_every_register)
{
    uint64_t sum;

    asm volatile("movq $1, %%rbx\n movq $2, %%r8\n movq $4, %%r9\n movq $8, %%r12\n movq $16, %%r15\n"
                 GUARDED("ud2") "leaq (%%rbx,%%r8), %0\n addq %%r9, %0\n addq %%r12, %0\n addq %%r15, %0"
                 : "=a"(sum) : : "rbx", "r8", "r9", "r12", "r15", "memory", "cc");
    CHECK(sum == 31);
}

/*
 * Step: a guest that single-steps itself, as a debugger of its own would: TF in RFLAGS, and a #DB
 * after each instruction, which DR6.BS tells from a breakpoint.
 */
#include "guest.h"
#include "print.h"
#include "trap.h"

enum { DEBUG_EXCEPTION = 1, TF = 1 << 8, DR6_BS = 1 << 14 };

static volatile unsigned steps, told;

int on_trap(struct trap *trap)
{
    uint64_t dr6;

    if (trap->vector != DEBUG_EXCEPTION)
        return 0;
    asm volatile("mov %%dr6, %0" : "=r"(dr6));
    steps++;
    told += (dr6 & DR6_BS) != 0;
    asm volatile("mov %0, %%dr6" : : "r"(dr6 & ~(uint64_t)DR6_BS));
    return 1;
}

__attribute__((noinline)) static void step_four(void)
{
    asm volatile("pushfq\n"
                 "orl %0, (%%rsp)\n"
                 "popfq\n" /* sets TF, and is not stepped itself */
                 "nop\n"
                 "pushfq\n"
                 "andl %1, (%%rsp)\n"
                 "popfq\n" /* the fourth: it began with TF set */
                 "nop"
                 :
                 : "i"(TF), "i"(~TF)
                 : "memory", "cc");
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic;
    (void)info;
    trap_install();
    step_four();
    print("steps=%u told=%u\n", steps, told);
    return 0;
}

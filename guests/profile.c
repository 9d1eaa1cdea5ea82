/*
 * Profile: a kernel with symbols and frame pointers that spends nearly all of its time in
 * inner(), which outer() calls, and a few exits in others. For traces, statistics, profiles.
 */
#include "guest.h"

enum { CYCLES = 800000000 }; /* about 0.3 s */

static uint64_t tsc(void)
{
    uint32_t low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (uint64_t)high << 32;
}

static __attribute__((noinline)) void inner(uint64_t end)
{
    uint64_t now;

    do
        asm volatile("rdtsc; shl $32, %%rdx; or %%rdx, %%rax" : "=a"(now) : : "rdx");
    while (now < end);
}

static __attribute__((noinline)) void outer(void)
{
    inner(tsc() + CYCLES);
    asm volatile(""); /* no jump instead of the call */
}

static __attribute__((noinline)) void say(const char *text)
{
    put_text(text);
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic, (void)info;
    say("begin\n");
    outer();
    say("end\n");
    return 0;
}

/*
 * Profile: a kernel with symbols and frame pointers: a few exits, then how=spin stays in inner(),
 * which outer() calls, for ever. For traces, statistics, profiles.
 */
#include "guest.h"
#include "start_info.h"

static __attribute__((noinline)) void inner(int spin)
{
    if (spin)
        asm volatile("sti; 1: jmp 1b"); /* on, or Bochs lets no timer of the host in either */
}

static __attribute__((noinline)) void outer(int spin)
{
    inner(spin);
    asm volatile(""); /* no jump instead of the call */
}

static __attribute__((noinline)) void say(const char *text)
{
    put_text(text);
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic;
    say("begin\n");
    outer(cmdline_is(start_info_cmdline(info), "how", "spin"));
    say("end\n");
    return 0;
}

/*
 * Rings: runs one instruction after another in ring 3 and prints which of them trap. The
 * privileged ones must raise #GP. The sensitive ones - they read or change what belongs to the
 * kernel and yet do not trap - are why x86 without virtualisation support was hard to virtualise
 * (Popek and Goldberg, 1974). How those answer is the processor's affair: UMIP makes some trap.
 */
#include "rings.h"
#include "guest.h"
#include "paging.h"
#include "print.h"
#include "trap.h"

static struct trap seen; /* what ended the visit to ring 3 */

int on_trap(struct trap *trap)
{
    return leave_ring3(trap, &seen);
}

/* Runs the instruction in ring 3; whether it was the one that trapped, and not the ud2 behind it. */
static int traps(const struct attempt *attempt)
{
    visit_ring3(attempt->start);
    return seen.rip != attempt->end || seen.vector != INVALID_OPCODE;
}

int guest(uint32_t magic, uintptr_t info)
{
    unsigned trapped = 0, count = 0;
    int wrong = 0;

    (void)magic, (void)info;
    trap_install();
    map_identity(1, PAGE_USER);
    for (const struct attempt *a = privileged; a < privileged_end; a++, count++) {
        int gp = traps(a) && seen.vector == GENERAL_PROTECTION && seen.rip == a->start;

        print("%s=%s\n", a->name, gp ? "#GP" : "not trapped");
        trapped += gp;
        wrong |= !gp;
    }
    for (const struct attempt *a = sensitive; a < sensitive_end; a++)
        print("%s=%s\n", a->name, traps(a) ? "trapped" : "direct");
    print("privileged=%u\ntrapped=%u\n", count, trapped);
    return wrong;
}

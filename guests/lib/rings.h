/* The instructions that rings.c tries, and the way to ring 3 and back. */
#pragma once
#include <stdint.h>
#include "guest.h"
#include "trap.h"

struct attempt {
    const char *name;
    uint64_t start, end; /* of the instruction; a ud2 follows */
};

extern const struct attempt privileged[], privileged_end[], sensitive[], sensitive_end[];

/* Goes to `address` in ring 3; returns when a trap handler goes on at back_in_ring0. */
void visit_ring3(uint64_t address);
extern const char back_in_ring0[];
extern uint64_t ring0_stack;

/* For on_trap: a trap out of ring 3 is kept, and ends the visit. */
static inline int leave_ring3(struct trap *trap, struct trap *seen)
{
    if ((trap->cs & 3) != 3)
        return 0;
    *seen = *trap;
    trap->rip = (uintptr_t)back_in_ring0;
    trap->cs = KERNEL_CODE;
    trap->ss = KERNEL_DATA;
    trap->rsp = ring0_stack;
    trap->rflags = 2;
    return 1;
}

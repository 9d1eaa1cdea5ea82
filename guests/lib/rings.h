/* The instructions that rings.c tries, and the way to ring 3 and back. */
#pragma once
#include <stdint.h>

struct attempt {
    const char *name;
    uint64_t start, end; /* of the instruction; a ud2 follows */
};

extern const struct attempt privileged[], privileged_end[], sensitive[], sensitive_end[];

/* Goes to `address` in ring 3; returns when a trap handler goes on at back_in_ring0. */
void visit_ring3(uint64_t address);
extern const char back_in_ring0[];
extern uint64_t ring0_stack;

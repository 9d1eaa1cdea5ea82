/* Model-specific registers; a fault shows in trap_vector. */
#pragma once
#include <stdint.h>
#include "trap.h"

static inline uint64_t read_msr(uint32_t number)
{
    uint32_t low = 0, high = 0;

    asm volatile(GUARDED("rdmsr") : "+a"(low), "+d"(high) : "c"(number) : "memory");
    return low | (uint64_t)high << 32;
}

static inline void write_msr(uint32_t number, uint64_t value)
{
    asm volatile(GUARDED("wrmsr") : : "a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(number) : "memory");
}

/* Whether the MSR holds `value` once it was written. */
static inline int msr_holds(uint32_t number, uint64_t value)
{
    write_msr(number, value);
    return trap_vector == NO_TRAP && read_msr(number) == value;
}

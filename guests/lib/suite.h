/* What the tests of the sample suite share. */
#pragma once
#include <ringfence.h>
#include <stddef.h>
#include <stdint.h>

#define TEST RINGFENCE_TEST
#define CHECK RINGFENCE_CHECK

/* RFLAGS (Intel SDM vol. 1, 3.4.3). */
enum { CF = 1, PF = 4, AF = 0x10, ZF = 0x40, SF = 0x80, TF = 0x100, IF = 0x200, DF = 0x400, OF = 0x800 };

/* A value that the compiler knows nothing of: what is tested is the processor. */
static inline uint64_t opaque(uint64_t value)
{
    __asm__ volatile("" : "+r"(value));
    return value;
}

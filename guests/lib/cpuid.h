/* CPUID, and the vendor that decides between VMCALL and VMMCALL. */
#pragma once
#include <stdint.h>

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
    return r;
}

static inline int is_intel(void)
{
    return cpuid(0).ebx == 0x756E6547; /* "Genu" */
}

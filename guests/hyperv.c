/* Hyper-V's interface beside KVM's: its CPUID leaves, and its clock (TLFS, 2.4 and 12.4). */
#include "cpuid.h"
#include "guest.h"
#include "print.h"

enum { FIRST = 0x40000000, SECOND = 0x40000100, REFERENCE_COUNTER = 0x40000020 };

static uint32_t counter(void)
{
    uint32_t low, high;

    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(REFERENCE_COUNTER));
    return low;
}

int guest(uint32_t magic, uintptr_t info)
{
    uint32_t interface[] = { cpuid(FIRST + 1).eax, 0 };
    struct cpuid kvm = cpuid(SECOND);
    uint32_t signature[] = { kvm.ebx, kvm.ecx, kvm.edx, 0 };
    uint32_t begin;

    (void)magic, (void)info;
    print("interface=%s\n", (const char *)interface);
    print("second=%s\n", (const char *)signature);
    begin = counter();
    while (counter() == begin)
        asm volatile("pause");
    print("clock=advances\n");
    return 0;
}

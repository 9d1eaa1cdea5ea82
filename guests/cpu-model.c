/* What --cpu changes of CPUID: vendor, feature bits, address bits. */
#include "cpuid.h"
#include "guest.h"
#include "print.h"

enum { SSE4_2 = 20, X2APIC = 21, SSE3 = 0, XSAVE = 26, NX = 20, PV_EOI = 6 };

static unsigned bit(uint32_t value, unsigned number)
{
    return value >> number & 1;
}

int guest(uint32_t magic, uintptr_t info)
{
    struct cpuid basic = cpuid(0), features = cpuid(1), extended = cpuid(0x80000001);
    uint32_t vendor[] = { basic.ebx, basic.edx, basic.ecx, 0 };

    (void)magic, (void)info;
    print("vendor=%s\n", (const char *)vendor);
    print("sse3=%u\n", bit(features.ecx, SSE3));
    print("sse4_2=%u\n", bit(features.ecx, SSE4_2));
    print("x2apic=%u\n", bit(features.ecx, X2APIC));
    print("xsave=%u\n", bit(features.ecx, XSAVE));
    print("nx=%u\n", bit(extended.edx, NX));
    print("phys_bits=%u\n", cpuid(0x80000008).eax & 0xFF);
    print("pv_eoi=%u\n", bit(cpuid(0x40000001).eax, PV_EOI));
    return 0;
}

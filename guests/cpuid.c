/* CPUID: who made the processor, that a hypervisor runs it and which, and this processor's APIC id. */
#include "cpuid.h"
#include "guest.h"
#include "print.h"

static void print_text(const char *name, uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t words[] = { a, b, c, 0 };

    print("%s=%s\n", name, (const char *)words);
}

int guest(uint32_t magic, uintptr_t info)
{
    struct cpuid basic = cpuid(0), features = cpuid(1);
    unsigned hypervisor = features.ecx >> 31;

    (void)magic, (void)info;
    print_text("vendor", basic.ebx, basic.edx, basic.ecx);
    print("max_leaf=0x%x\n", basic.eax);
    print("signature=0x%x\n", features.eax);
    print("apic_id=%u\n", features.ebx >> 24);
    print("hypervisor=%u\n", hypervisor);
    if (hypervisor) {
        struct cpuid kvm = cpuid(0x40000000);

        print_text("hypervisor_signature", kvm.ebx, kvm.ecx, kvm.edx);
        print("kvm_features=0x%x\n", cpuid(0x40000001).eax);
    }
    return basic.eax ? 0 : 1;
}

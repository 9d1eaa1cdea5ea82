/* What CPUID says (Intel SDM vol. 2, CPUID; KVM's leaves: Documentation/virt/kvm/x86/cpuid.rst). */
#include "suite.h"
#include "cpuid.h"

TEST(cpuid_has_leaf_1)
{
    CHECK(cpuid(0).eax >= 1);
}

TEST(the_vendor_is_twelve_letters)
{
    struct cpuid it = cpuid(0);
    uint32_t words[3] = { it.ebx, it.edx, it.ecx };

    for (unsigned i = 0; i < 12; i++) {
        uint8_t letter = words[i / 4] >> i % 4 * 8;

        CHECK(letter >= ' ' && letter <= '~');
    }
}

TEST(cpuid_repeats_itself)
{
    struct cpuid a = cpuid(1), b = cpuid(1);

    CHECK(a.eax == b.eax && a.ecx == b.ecx && a.edx == b.edx);
}

TEST(there_is_a_hypervisor)
{
    CHECK(cpuid(1).ecx >> 31);
}

TEST(the_hypervisor_is_kvm)
{
    struct cpuid it = cpuid(0x40000000);

    CHECK(it.ebx == 0x4B4D564B && it.ecx == 0x564B4D56 && it.edx == 0x4D);
}

TEST(there_are_extended_leaves)
{
    CHECK(cpuid(0x80000000).eax >= 0x80000008);
}

TEST(long_mode_is_announced)
{
    CHECK(cpuid(0x80000001).edx >> 29 & 1);
}

TEST(addresses_have_at_least_36_bits)
{
    uint32_t it = cpuid(0x80000008).eax;

    CHECK((it & 0xFF) >= 36 && (it >> 8 & 0xFF) >= 48);
}

TEST(the_first_processor_is_number_0)
{
    CHECK(cpuid(1).ebx >> 24 == 0);
}

/*
 * Hypercalls: asks for the number of processors and the RAM, prints a word and ends, all by
 * ringfence's hypercalls. by=port: three ports. by=vmcall: KVM's hypercall 12, the one that KVM
 * hands on to user space (Documentation/virt/kvm/x86/hypercalls.rst); KVM takes its number from
 * RAX and its arguments from RBX, RCX and RDX, and the first must be page-aligned.
 */
#include "cpuid.h"
#include "guest.h"
#include "print.h"
#include "start_info.h"

enum { PORT_FUNCTION = 0x520, PORT_ARGUMENT = 0x524, PORT_RESULT = 0x528 };
enum { PROBE, PRINT, END, CPUS, RAM_MIB, UNKNOWN = 99 };
enum { KVM_HC_MAP_GPA_RANGE = 12, PROBE_RESULT = 0x676E6972 };

static uint32_t by_port(uint32_t function, uint32_t argument)
{
    outl(PORT_ARGUMENT, argument);
    outl(PORT_FUNCTION, function);
    return inl(PORT_RESULT);
}

static uint32_t by_vmcall(uint32_t function, uint32_t argument)
{
    uint64_t rax = KVM_HC_MAP_GPA_RANGE;
    uint64_t rbx = (uint64_t)argument << 12, rcx = function + 1;

    if (is_intel())
        asm volatile("vmcall" : "+a"(rax) : "b"(rbx), "c"(rcx), "d"(0), "S"(0) : "memory");
    else
        asm volatile("vmmcall" : "+a"(rax) : "b"(rbx), "c"(rcx), "d"(0), "S"(0) : "memory");
    return rax;
}

int guest(uint32_t magic, uintptr_t info)
{
    const char *cmdline = start_info_cmdline(info);
    uint32_t (*call)(uint32_t, uint32_t) = cmdline_is(cmdline, "by", "vmcall") ? by_vmcall : by_port;

    (void)magic;
    if (call(PROBE, 0) != PROBE_RESULT)
        return 1;
    if (call(UNKNOWN, 0) != UINT32_MAX)
        return 2;
    for (const char *text = "hello by hypercall\n"; *text; text++)
        call(PRINT, *text);
    print("cpus=%u\n", call(CPUS, 0));
    print("ram_mib=%u\n", call(RAM_MIB, 0));
    call(END, 5);
    return 3; /* END did not end the machine */
}

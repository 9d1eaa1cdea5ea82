/*
 * Strict: the mistakes that strict mode ends a guest for, and that a guest survives without it.
 * how=io-read, io-write, mmio-read, mmio-write, msr-read, msr-write, text, text-repeated, text-push,
 * text-call, text-sidt, text-fxsave, text-accessed, null-read, null-write, null-jump, null-sidt, none;
 * hypercall is none either. Prints first where the instruction is that makes the mistake: `at=0x...`.
 */
#include "guest.h"
#include "print.h"
#include "start_info.h"
#include "trap.h"

enum { UNCLAIMED_PORT = 0x1230, HOLE = 0xD0000010, MSR_UNKNOWN = 0x00DEAD00 };

static const uint32_t constant = 0x600D;

/* Says where the instruction at `label` is, and runs it. */
#define MISTAKE(label, code, ...)                                                                 \
    extern const char label[];                                                                    \
    print("at=0x%lx\n", (unsigned long)label);                                                    \
    asm volatile(code __VA_ARGS__)

static void io_read(void)
{
    uint16_t value;

    MISTAKE(at_io_read, "at_io_read: inw %1, %0", : "=a"(value) : "d"((uint16_t)UNCLAIMED_PORT));
}

static void io_write(void)
{
    MISTAKE(at_io_write, "at_io_write: outl %0, %1", : : "a"(0x12345678), "d"((uint16_t)UNCLAIMED_PORT));
}

static void mmio_read(void)
{
    uint8_t value;

    MISTAKE(at_mmio_read, "at_mmio_read: movb (%1), %0", : "=q"(value) : "r"((uintptr_t)HOLE));
}

static void mmio_write(void)
{
    MISTAKE(at_mmio_write, "at_mmio_write: movl %0, 4(%1)", : : "r"(0x1234), "r"((uintptr_t)HOLE) : "memory");
}

static void msr_read(void)
{
    MISTAKE(at_msr_read, GUARDED("at_msr_read: rdmsr"), : : "c"(MSR_UNKNOWN) : "eax", "edx", "memory");
}

static void msr_write(void)
{
    MISTAKE(at_msr_write, GUARDED("at_msr_write: wrmsr"), : : "c"(MSR_UNKNOWN), "a"(5), "d"(0) : "memory");
}

static void text(void)
{
    MISTAKE(at_text, "at_text: movw %w0, (%1)", : : "r"(0xBAD), "r"(&constant) : "memory");
}

/* KVM leaves RIP at it, while there are elements left. */
static void text_repeated(void)
{
    const void *to = &constant;
    uint64_t count = 4;

    MISTAKE(at_repeated, "at_repeated: rep stosb", : "+D"(to), "+c"(count) : "a"(0) : "memory");
}

/* A stack that cannot be written. */
static const uint64_t stack[8] __attribute__((aligned(16))) = { 1 };

static void text_push(void)
{
    MISTAKE(at_push, "mov %0, %%rsp; at_push: push %%rax", : : "r"(stack + 8) : "memory");
}

static void text_call(void)
{
    MISTAKE(at_call, "mov %0, %%rsp; at_call: call called; .globl called; called: ud2",
            : : "r"(stack + 8) : "memory");
}

/* What KVM can do in memory alone. */
static void text_sidt(void)
{
    MISTAKE(at_sidt, "at_sidt: sidt (%0)", : : "r"(stack) : "memory");
}

static void text_fxsave(void)
{
    static const uint8_t area[512] __attribute__((aligned(16))) = { 1 };

    MISTAKE(at_fxsave, "at_fxsave: fxsave (%0)", : : "r"(area) : "memory");
}

/* A table of constants, of which a segment has not been accessed. */
static void text_accessed(void)
{
    static const uint64_t table[] = { 0, 0x00AF9B000000FFFF, 0x00CF92000000FFFF };
    struct __attribute__((packed)) { uint16_t limit; uint64_t base; } gdt = {
        sizeof(table) - 1, (uintptr_t)table
    };

    MISTAKE(at_accessed, "lgdt %0; at_accessed: mov %w1, %%ds", : : "m"(gdt), "r"(KERNEL_DATA) : "memory");
}

static void null_sidt(void)
{
    MISTAKE(at_null_sidt, "at_null_sidt: sidt 8(%0)", : : "r"((uintptr_t)0) : "memory");
}

/* KVM writes the one that the processor has over the other. */
static void hypercall(void)
{
    uint64_t answer = 99;

    asm volatile("vmcall" : "+a"(answer) : : "memory");
    answer = 99;
    asm volatile("vmmcall" : "+a"(answer) : : "memory");
    print("answer=0x%lx\n", (unsigned long)answer);
}

static void null_read(void)
{
    uint64_t value;

    MISTAKE(at_null_read, "at_null_read: movq 8(%1), %0", : "=r"(value) : "r"((uintptr_t)0));
}

static void null_write(void)
{
    MISTAKE(at_null_write, "at_null_write: movb %b0, (%1)", : : "q"(7), "r"((uintptr_t)0) : "memory");
}

static void null_jump(void)
{
    print("at=0x0\n");
    *(volatile uint8_t *)(uintptr_t)0x1000 = 0; /* what a null pointer is not */
    asm volatile("call *%0" : : "r"((uintptr_t)0) : "memory");
}

static void none(void)
{
}

static const struct {
    const char *name;
    void (*make)(void);
} mistakes[] = {
    { "io-read", io_read },       { "io-write", io_write }, { "mmio-read", mmio_read },
    { "mmio-write", mmio_write }, { "msr-read", msr_read }, { "msr-write", msr_write },
    { "text", text },             { "text-repeated", text_repeated },
    { "text-push", text_push },   { "text-call", text_call },
    { "text-sidt", text_sidt },   { "text-fxsave", text_fxsave },
    { "text-accessed", text_accessed }, { "null-sidt", null_sidt },
    { "hypercall", hypercall },   { "null-read", null_read },
    { "null-write", null_write },
    { "null-jump", null_jump },   { "none", none },
};

int guest(uint32_t magic, uintptr_t info)
{
    const char *cmdline = start_info_cmdline(info);

    (void)magic;
    trap_install();
    for (unsigned i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        if (cmdline_is(cmdline, "how", mistakes[i].name)) {
            mistakes[i].make();
            put_text("survived\n");
            return 0;
        }
    }
    return 2;
}

/*
 * Strict: the mistakes that strict mode ends a guest for, and that a guest survives without it.
 * how=io-read, io-write, mmio-read, mmio-write, msr-read, msr-write, text, null-read, null-write,
 * null-jump, none. Prints first where the instruction is that makes the mistake: `at=0x...`.
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
    { "text", text },             { "null-read", null_read }, { "null-write", null_write },
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

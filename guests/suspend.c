/*
 * Suspend to RAM (ACPI 6.5, 16.1.3): sets the clock's alarm and a waking vector, suspends, and is
 * back in real mode within a second, with its memory as it was and PM1_STS saying what woke it.
 */
#include "acpi.h"
#include "guest.h"
#include "print.h"

enum { WAKING_VECTOR = 12, RTC_EN = 1 << 10, S3 = 1 << 10 };
enum { INDEX = 0x70, DATA = 0x71, SECONDS_ALARM = 1, MINUTES_ALARM = 3, HOURS_ALARM = 5, ANY = 0xC0 };
enum { STATUS_B = 0x0B, AIE = 1 << 5 };
enum { VECTOR = 0x7008, WORD = 0x6000 };

/* WORD, PM1_STS and the port of the debug exit are in it as numbers: nothing else survives. */
__asm__(".code16\n"
        "awake: mov 0x6000, %bx\n"
        "xor $0x5AA5, %bx\n"
        "mov $0x600, %dx\n"
        "in %dx, %ax\n"
        "xor $0x8400, %ax\n" /* WAK_STS and RTC_STS */
        "or %bx, %ax\n"
        "movzwl %ax, %eax\n"
        "mov $0xF4, %dx\n"
        "out %eax, %dx\n"
        "hlt\n"
        "awake_end:\n"
        ".code32\n");
extern const uint8_t awake[], awake_end[];

static void set_clock(uint8_t index, uint8_t value)
{
    outb(INDEX, index);
    outb(DATA, value);
}

int guest(uint32_t magic, uintptr_t info)
{
    const void *rsdp = find_rsdp();
    const struct table *fadt = rsdp ? find(at(u32(rsdp, 24)), 8, "FACP") : 0;

    (void)magic, (void)info;
    if (!fadt || u32(fadt, 56) != 0x600)
        return 1;
    for (const uint8_t *byte = awake; byte < awake_end; byte++)
        *(volatile uint8_t *)(VECTOR + (byte - awake)) = *byte;
    *(volatile uint16_t *)WORD = 0x5AA5;
    *(volatile uint32_t *)(uintptr_t)(u32(fadt, 36) + WAKING_VECTOR) = VECTOR;
    set_clock(SECONDS_ALARM, ANY);
    set_clock(MINUTES_ALARM, ANY);
    set_clock(HOURS_ALARM, ANY);
    outb(INDEX, STATUS_B);
    outb(DATA, inb(DATA) | AIE);
    outw(u32(fadt, 56) + 2, RTC_EN);
    print("suspends\n");
    outw(u32(fadt, 64), SLP_EN | S3);
    return 2;
}

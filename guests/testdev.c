/*
 * What QEMU's pc-testdev has for kvm-unit-tests: ports and memory that keep what is written, a
 * page that is flushed, and the levels of interrupt lines, tried with the PIC.
 */
#include "guest.h"
#include "pic.h"
#include "print.h"
#include "trap.h"

enum { PORTS = 0xE0, FLUSH_PAGE = 0xE4, LEVELS = 0x2000, LINE = 5, SECOND_LINE = 10 };
enum { MEMORY = 0xFF000000, MEMORY_LEN = 0x10000 };

static volatile unsigned interrupts[16];
static char page[4096] __attribute__((aligned(4096)));

int on_trap(struct trap *trap)
{
    unsigned line = trap->vector - IRQ_BASE;

    if (line >= 16)
        return 0;
    interrupts[line]++;
    outb(LEVELS + line, 0);
    if (line >= 8)
        outb(PIC2, END_OF_INTERRUPT);
    pic_done();
    return 1;
}

static int ports_keep(void)
{
    outl(PORTS, 0x44332211);
    outb(PORTS + 1, 0xAA);
    outw(PORTS + 2, 0xCCBB);
    return inl(PORTS) == 0xCCBBAA11 && inb(PORTS + 3) == 0xCC && inw(PORTS) == 0xAA11;
}

static int memory_keeps(void)
{
    volatile uint32_t *first = (volatile uint32_t *)(uintptr_t)MEMORY;
    volatile uint8_t *last = (volatile uint8_t *)(uintptr_t)(MEMORY + MEMORY_LEN - 1);

    *first = 0x12345678;
    *last = 0x9A;
    return *first == 0x12345678 && *last == 0x9A;
}

static int flushed_page_stays(void)
{
    volatile char *byte = page + 7;

    *byte = 3;
    outl(FLUSH_PAGE, (uintptr_t)page);
    return *byte == 3;
}

static int interrupt_comes(unsigned line)
{
    outb(LEVELS + line, 1);
    while (!interrupts[line])
        asm volatile("sti; hlt; cli" : : : "memory"); /* sti opens only after hlt: none is lost */
    return interrupts[line] == 1;
}

int guest(uint32_t magic, uintptr_t info)
{
    (void)magic, (void)info;
    trap_install();
    pic_install(1 << 2 | 1 << LINE | 1 << SECOND_LINE);
    print("ports=%s\n", ports_keep() ? "kept" : "lost");
    print("memory=%s\n", memory_keeps() ? "kept" : "lost");
    print("page=%s\n", flushed_page_stays() ? "kept" : "lost");
    print("irq%u=%s\n", LINE, interrupt_comes(LINE) ? "once" : "again");
    print("irq%u=%s\n", SECOND_LINE, interrupt_comes(SECOND_LINE) ? "once" : "again");
    return 0;
}

/*
 * End: the ways in which a guest can end other than by an exit code. how=...
 * triple-fault     an exception, and no IDT to deliver it through
 * unmapped-jump    executes where there is neither RAM nor ROM
 * halt             hlt with interrupts off
 * idle             hlt with interrupts on, again and again, and none comes
 * spin             jumps to itself with interrupts on; spin-deaf: with interrupts off
 * panic            tells the pvpanic device (QEMU docs/specs/pvpanic.rst)
 * reset-i8042, reset-cf9, reset-92   the three reset ports of a PC
 * poweroff         SLP_EN in ACPI's PM1a control register
 * shutdown-port    the word "Shutdown", as Bochs has it
 */
#include "guest.h"
#include "print.h"
#include "start_info.h"

enum { I8042 = 0x64, RESET_CONTROL = 0xCF9, PORT_92 = 0x92, PVPANIC = 0x505, PM1A_CONTROL = 0x604 };
enum { SHUTDOWN_PORT = 0x8900 };

static void triple_fault(void)
{
    static const uint8_t no_idt[10];

    asm volatile("lidt %0; ud2" : : "m"(no_idt));
}

static void unmapped_jump(void)
{
    uintptr_t hole = 0xD0000000;

    asm volatile("jmp *%0" : : "r"(hole));
}

static void halt(void)
{
    asm volatile("cli; hlt");
}

static void idle(void)
{
    for (;;)
        asm volatile("sti; hlt");
}

static void spin(void)
{
    asm volatile("sti; 1: jmp 1b");
}

static void spin_deaf(void)
{
    asm volatile("cli; 1: jmp 1b");
}

static void panic(void)
{
    print("features=0x%x\n", inb(PVPANIC));
    outb(PVPANIC, 1);
}

static void reset_i8042(void)
{
    outb(I8042, 0xFE);
}

static void reset_cf9(void)
{
    outb(RESET_CONTROL, 0x02); /* choose a hard reset, which alone does nothing */
    put_text("chosen\n");
    outb(RESET_CONTROL, 0x06);
}

static void reset_92(void)
{
    outb(PORT_92, inb(PORT_92) | 1);
}

static void poweroff(void)
{
    outw(PM1A_CONTROL, 1 << 13);
}

static void shutdown_port(void)
{
    for (const char *text = "Shutdown"; *text; text++)
        outb(SHUTDOWN_PORT, *text);
}

static const struct {
    const char *name;
    void (*end)(void);
} ways[] = {
    { "triple-fault", triple_fault }, { "unmapped-jump", unmapped_jump },
    { "halt", halt },                 { "idle", idle },
    { "spin", spin },                 { "spin-deaf", spin_deaf },
    { "panic", panic },               { "reset-i8042", reset_i8042 },
    { "reset-cf9", reset_cf9 },       { "reset-92", reset_92 },
    { "poweroff", poweroff },         { "shutdown-port", shutdown_port },
};

int guest(uint32_t magic, uintptr_t info)
{
    const char *cmdline = start_info_cmdline(info);

    (void)magic;
    for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (cmdline_is(cmdline, "how", ways[i].name)) {
            print("%s\n", ways[i].name);
            ways[i].end();
            return 1; /* still there */
        }
    }
    return 2;
}

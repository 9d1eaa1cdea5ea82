/*
 * Reset: gives every register and device it can reach a value of its own, says that it is ready,
 * and then does what the name of its test says: check (all is as it was), corrupt (nothing is),
 * remap and ring3 (a page table's entry, as ring 3 sees it), scribble (over all memory, to its
 * death), triple-fault, spin, pages=N (writes to N pages), far=N and clean=N (write at N MiB, find
 * zero there). Without a name it checks.
 */
#include <ringfence.h>
#include "cmdline.h"
#include "cpuid.h"
#include "guest.h"
#include "msr.h"
#include "paging.h"
#include "pic.h"
#include "print.h"
#include "rings.h"
#include "start_info.h"
#include "trap.h"

enum { WINDOW = 0x40000000, NEAR = 16 << 20, FAR = 18 << 20 }; /* what ring 3 sees, by way of one entry */
enum { IOAPIC = 0xFEC00000, LAPIC = 0xFEE00000 };
enum { VERSION = 0x30, TPR = 0x80, SVR = 0xF0, LVT_TIMER = 0x320, INITIAL = 0x380, CURRENT = 0x390, DIVIDE = 0x3E0 };
enum { TIMER = 0x10000 | 0x20000 | 0x41 }; /* masked, periodic, vector 0x41 */

static int has_apic, has_chips, has_avx;
static unsigned wrong;

static volatile uint32_t *at(uintptr_t address)
{
    return (volatile uint32_t *)address;
}

static void expect(const char *what, uint64_t found, uint64_t expected)
{
    if (found == expected)
        return;
    print("%s=%x instead of %x\n", what, (unsigned)found, (unsigned)expected);
    wrong++;
}

/* STAR, LSTAR, SFMASK, KERNEL_GS_BASE, FS_BASE, GS_BASE, TSC_AUX, SYSENTER_CS, _ESP, _EIP, PAT. */
#define MSRS 11
static const uint32_t msrs[MSRS] = { 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000102, 0xC0000100, 0xC0000101,
                                     0xC0000103, 0x174, 0x175, 0x176, 0x277 };
static const uint64_t msr_values[2][MSRS] = {
    { 0x0013000800000000, 0x111000, 0x200, 0x3333, 0x4444, 0x5555, 0x0A0A, 8, 0x6000, 0x7000, 0x0007040600070406 },
    { 0x001B001000000000, 0x999000, 0x700, 0xAAAA, 0xBBBB, 0xCCCC, 0x0B0B, 16, 0xD000, 0xE000, 0x0606060606060606 },
};
static uint8_t msr_known[MSRS];

enum { EFER = 0xC0000080, EFER_SCE = 1, APIC_BASE = 0x1B, APIC_ON = 0x800 };
enum { CR0_AM = 1 << 18, CR4_OSXSAVE = 1 << 18, CPUID_XSAVE = 1 << 26 };

/* Debug registers: two addresses of four, conditions without an enabled breakpoint, the status. */
static const uint64_t dr_values[2][6] = {
    { 0xD0D0, 0xD1D1, 0xD2D2, 0xD3D3, 0xFFFF0FF1, 0x000F0400 },
    { 1, 2, 3, 4, 0xFFFF0FFE, 0x0FF00400 },
};

/* What FXSAVE stores (Intel SDM vol. 1, 10.5.1). */
struct fx {
    uint16_t control, status;
    uint8_t other[20];
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16], xmm[16][16], reserved[96];
} __attribute__((aligned(16)));

/* The values that the registers of x87 and SSE are to have. */
static struct fx floating_point(int n)
{
    struct fx fx;

    asm volatile("fxsave %0" : "=m"(fx));
    fx.control = n ? 0x37F : 0x27F;
    fx.mxcsr = n ? 0x1F80 : 0x9F80;
    for (unsigned i = 0; i < sizeof(fx.xmm); i++)
        fx.xmm[i / 16][i % 16] = i + (n ? 0x55 : 0);
    return fx;
}

/* What XCR0 has switched on shows in the size that XSAVE takes. */
static uint32_t set_xcr0(uint32_t value)
{
    asm volatile(GUARDED("xsetbv") : : "a"(value), "d"(0), "c"(0) : "memory");
    return cpuid(0xD).ebx;
}

enum { XSAVE_SSE = 576 }; /* bytes that XSAVE takes without AVX */

static void set_processor(int n)
{
    const uint64_t *dr = dr_values[n];
    struct fx fx = floating_point(n);
    uint64_t cr0, cr4;

    for (unsigned i = 0; i < MSRS; i++) {
        int known = msr_holds(msrs[i], msr_values[n][i]);

        if (n == 0)
            msr_known[i] = known;
    }
    write_msr(EFER, (read_msr(EFER) & ~(uint64_t)EFER_SCE) | (n ? 0 : EFER_SCE));
    asm volatile("mov %%cr0, %0\n mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    cr0 &= ~(uint64_t)CR0_AM;
    cr4 = (cr4 | 0x600) & ~0xCUL; /* OSFXSR, OSXMMEXCPT; DE, TSD */
    asm volatile("mov %0, %%cr0" : : "r"(cr0 | (n ? 0 : CR0_AM)));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | (n ? 8 : 4) | (has_avx ? CR4_OSXSAVE : 0)));
    asm volatile("mov %0, %%cr2" : : "r"(n ? 0x2000UL : 0x1234000UL));
    if (!has_apic) /* else it is the task priority */
        asm volatile("mov %0, %%cr8" : : "r"(n ? 1UL : 2UL));
    asm volatile("mov %0, %%dr0\n mov %1, %%dr1" : : "r"(dr[0]), "r"(dr[1]));
    asm volatile("mov %0, %%dr2\n mov %1, %%dr3" : : "r"(dr[2]), "r"(dr[3]));
    asm volatile("mov %0, %%dr6\n mov %1, %%dr7" : : "r"(dr[4]), "r"(dr[5]));
    if (has_avx)
        set_xcr0(n ? 7 : 3);
    asm volatile("fxrstor %0" : : "m"(fx));
}

static void check_processor(void)
{
    uint64_t cr0, cr4, cr2, cr8, dr[6];
    struct fx fx, expected = floating_point(0);

    asm volatile("fxsave %0" : "=m"(fx));
    asm volatile("mov %%cr0, %0\n mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    asm volatile("mov %%cr2, %0\n mov %%cr8, %1" : "=r"(cr2), "=r"(cr8));
    asm volatile("mov %%dr0, %0\n mov %%dr1, %1" : "=r"(dr[0]), "=r"(dr[1]));
    asm volatile("mov %%dr2, %0\n mov %%dr3, %1" : "=r"(dr[2]), "=r"(dr[3]));
    asm volatile("mov %%dr6, %0\n mov %%dr7, %1" : "=r"(dr[4]), "=r"(dr[5]));
    expect("cr0", cr0 & CR0_AM, CR0_AM);
    expect("cr4", cr4 & 0x60C, 0x604);
    expect("cr2", cr2, 0x1234000);
    expect("cr8", cr8, 2);
    for (unsigned i = 0; i < 6; i++)
        expect("dr", dr[i], dr_values[0][i]);
    expect("fcw", fx.control, expected.control);
    expect("mxcsr", fx.mxcsr, expected.mxcsr);
    for (unsigned i = 0; i < sizeof(fx.xmm); i++)
        expect("xmm", fx.xmm[i / 16][i % 16], expected.xmm[i / 16][i % 16]);
    if (has_avx)
        expect("xcr0", cpuid(0xD).ebx, XSAVE_SSE);
    expect("efer", read_msr(EFER) & EFER_SCE, EFER_SCE);
    for (unsigned i = 0; i < MSRS; i++) {
        if (msr_known[i])
            expect("msr", read_msr(msrs[i]), msr_values[0][i]);
    }
    if (has_apic)
        expect("apic base", read_msr(APIC_BASE) & (APIC_ON | LAPIC), APIC_ON | LAPIC);
}

/* Devices: value 0 is that of the checkpoint. */
static void set_devices(int n)
{
    outb(0x3F8 + 3, 0x80);
    outb(0x3F8, n ? 3 : 1);
    outb(0x3F8 + 3, n ? 0x03 : 0x1B);
    outb(0x3F8 + 7, n ? 0x99 : 0x77);
    outb(0x3F8 + 4, n ? 0x1B : 0x0B);
    outb(0x3F8 + 1, n ? 0x0F : 0x02);
    outb(0x70, 0x0F);
    outb(0x71, n ? 0xFF : 0x5A);
    outb(0x70, n ? 0x3F : 0x0F);
    outb(0x80, n ? 0x13 : 0x42);
    outb(0x64, 0x61);
    outb(0x60, n ? 0x01 : 0xC3);
    outl(0x524, n ? 7 : 0x12345678);
    outb(0xE1, n ? 0xEE : 0x31);
    outw(0x510, n ? 3 : 0);
    inb(0x511);
    outb(0x602, n ? 0xFF : 0x21);
    if (has_chips) {
        outb(PIC1 + 1, n ? 0x00 : 0xA5);
        outb(PIC2 + 1, n ? 0x0F : 0x5A);
        outb(0x43, n ? 0x30 : 0x34);
        outb(0x40, n ? 1 : 0);
        outb(0x40, n ? 0 : 0x80);
        at(IOAPIC)[0] = 0x10 + 2 * 5;
        at(IOAPIC)[4] = n ? 0x00010099 : 0x00010035;
        outb(0x2000 + 7, n); /* a line of pc-testdev's */
    }
    if (has_apic) {
        *at(LAPIC + SVR) = n ? 0x1F0 : 0x1FF;
        *at(LAPIC + TPR) = n ? 0x10 : 0x20;
        *at(LAPIC + DIVIDE) = n ? 0x0B : 0x03;
        *at(LAPIC + LVT_TIMER) = n ? 0x10042 : TIMER;
        *at(LAPIC + INITIAL) = n ? 0 : 0x40000000;
    }
}

static uint8_t i8042_ram(uint8_t address)
{
    outb(0x64, 0x20 | address);
    return inb(0x60);
}

static void check_devices(void)
{
    expect("lcr", inb(0x3F8 + 3), 0x1B);
    expect("scr", inb(0x3F8 + 7), 0x77);
    expect("mcr", inb(0x3F8 + 4), 0x0B);
    expect("ier", inb(0x3F8 + 1), 0x02);
    outb(0x3F8 + 3, 0x9B);
    expect("divisor", inb(0x3F8), 1);
    outb(0x3F8 + 3, 0x1B);
    expect("cmos", inb(0x71), 0x5A);
    expect("post", inb(0x80), 0x42);
    expect("i8042", i8042_ram(1), 0xC3);
    expect("hypercall", inl(0x524), 0x12345678);
    expect("testdev", inb(0xE1), 0x31);
    expect("fw_cfg", inb(0x511), 'E');
    expect("pm1_en", inb(0x602), 0x21);
    if (has_chips) {
        expect("pic1", inb(PIC1 + 1), 0xA5);
        expect("pic2", inb(PIC2 + 1), 0x5A);
        outb(0x43, 0xE2);
        expect("pit", inb(0x40) & 0x3F, 0x34);
        at(IOAPIC)[0] = 0x10 + 2 * 5;
        expect("ioapic", at(IOAPIC)[4], 0x00010035);
        outb(PIC1, 0x0A); /* OCW3: read the request register */
        expect("irr", inb(PIC1) & 0x80, 0);
    }
    if (has_apic) {
        expect("svr", *at(LAPIC + SVR), 0x1FF);
        expect("tpr", *at(LAPIC + TPR), 0x20);
        expect("lvt", *at(LAPIC + LVT_TIMER), TIMER);
        expect("divide", *at(LAPIC + DIVIDE), 0x03);
        expect("initial", *at(LAPIC + INITIAL), 0x40000000);
        expect("stopped", *at(LAPIC + CURRENT) == 0, 0);
    }
}

static uint64_t *window_entry(void)
{
    uint64_t *pdpt = (uint64_t *)(pml4[0] & ~0xFFFUL);
    uint64_t *pd = (uint64_t *)(pdpt[WINDOW >> 30] & ~0xFFFUL);

    return &pd[0];
}

static void look_at(uint64_t place)
{
    *window_entry() = place | 0x87; /* a large page for ring 3 */
    asm volatile("invlpg (%0)" : : "r"((uintptr_t)WINDOW) : "memory");
}

static struct trap seen;

int on_trap(struct trap *trap)
{
    return leave_ring3(trap, &seen);
}

asm(".text\n"
    "look_through_window: movl 0x40000000, %eax\n"
    "ud2\n");
extern const char look_through_window[];

static void expect_in_ring3(uint32_t value)
{
    visit_ring3((uintptr_t)look_through_window);
    expect("trap", seen.vector, INVALID_OPCODE);
    expect("window", (uint32_t)seen.rax, value);
}

static void setup(void)
{
    trap_install();
    map_identity(4, PAGE_USER);
    has_apic = *at(LAPIC + VERSION) != 0xFFFFFFFF;
    outb(PIC1 + 1, 0xA5);
    has_chips = inb(PIC1 + 1) == 0xA5;
    has_avx = cpuid(1).ecx & CPUID_XSAVE && cpuid(0xD).eax & 4;
    *at(NEAR) = 0xAAAA;
    *at(FAR) = 0xBBBB;
    look_at(NEAR);
    expect_in_ring3(0xAAAA);
    set_devices(0);
    set_processor(0);
}

static void triple_fault(void)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) none = { 0, 0 };

    asm volatile("lidt %0\n ud2" : : "m"(none));
}

static void scribble(uint64_t end)
{
    for (uint64_t page = end; page; page -= 4096)
        *at(page - 8) = *at(page - 4096) = 0xBADBAD;
}

static void write_pages(unsigned pages)
{
    for (unsigned i = 0; i < pages; i++)
        *at((4 << 20) + i * 4096) = i + 1;
}

static void run(const char *name, uint64_t memory)
{
    unsigned pages = cmdline_number(name, "pages", 0);
    unsigned far = cmdline_number(name, "far", 0), clean = cmdline_number(name, "clean", 0);

    switch (name[0] ? name[0] + name[1] : 0) {
    case 'c' + 'o': /* corrupt */
        set_devices(1);
        set_processor(1);
        if (has_apic)
            write_msr(APIC_BASE, read_msr(APIC_BASE) & ~(uint64_t)APIC_ON);
        look_at(FAR);
        scribble(0x90000);
        triple_fault();
        break;
    case 'r' + 'e': /* remap */
        look_at(FAR);
        expect_in_ring3(0xBBBB);
        break;
    case 'r' + 'i': /* ring3 */
        expect_in_ring3(0xAAAA);
        break;
    case 's' + 'c': /* scribble */
        scribble(memory);
        break;
    case 's' + 'p': /* spin */
        for (;;)
            ;
    case 't' + 'r': /* triple-fault */
        triple_fault();
        break;
    case 'n' + 'o': /* nothing */
        break;
    default:
        if (far)
            *at((uintptr_t)far << 20) = far;
        if (clean)
            expect("memory", *at((uintptr_t)clean << 20), 0);
        if (pages)
            write_pages(pages);
        if (far || clean || pages)
            break;
        check_processor();
        check_devices();
    }
}

int guest(uint32_t magic, uintptr_t info)
{
    static const char *const names[] = { "check", "corrupt", "remap", "ring3", "scribble", "spin", "triple-fault", "nothing" };
    char name[64];

    (void)magic;
    setup();
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        ringfence_announce(names[i]);
    ringfence_ready();
    for (unsigned i = 0; i < sizeof(name); i++)
        name[i] = (char)inb(RINGFENCE_NEXT);
    name[sizeof(name) - 1] = '\0';
    run(name, cmdline_number(start_info_cmdline(info), "memory", 64) << 20);
    return wrong;
}

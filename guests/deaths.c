/*
 * Deaths: the ways in which kernels die while they are young, one at a time (how=...). Each sets
 * up what breaks its fault's delivery, then goes to its instruction in deaths.S, whose functions
 * have fixed lengths: an autopsy names the instruction as function+offset. With say=nothing it has
 * no exit before.
 */
#include "deaths.h"
#include "guest.h"
#include "msr.h"
#include "paging.h"
#include "print.h"
#include "start_info.h"
#include "trap.h"

enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80, PAGE = 4096, PANIC_PORT = 0x505 };
enum { INTERRUPT_GATE = 0x8E, CALL_GATE = 0x8C, ABSENT = 0x0E };

static uint64_t pages[512] __attribute__((aligned(PAGE)));
static uint64_t empty[512] __attribute__((aligned(PAGE)));

static uint64_t *page_entry(const void *address)
{
    return &pages[(uintptr_t)address / PAGE];
}

/* The low 2 MiB in small pages, so that single ones can be taken away. */
static void map_small(void)
{
    uint64_t *pdpt, *directory;

    map_identity(1, 0);
    pdpt = (uint64_t *)(pml4[0] & ~0xFFFull);
    directory = (uint64_t *)(pdpt[0] & ~0xFFFull);
    for (unsigned i = 0; i < 512; i++)
        pages[i] = (uint64_t)i * PAGE | PRESENT | WRITABLE;
    directory[0] = (uintptr_t)pages | PRESENT | WRITABLE;
    asm volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");
}

static void unmap(const void *address)
{
    *page_entry(address) = 0;
    asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static void no_idt(void)
{
    static const uint8_t nothing[10];

    asm volatile("lidt %0" : : "m"(nothing));
}

struct idt_entry {
    uint16_t offset_low, selector;
    uint8_t stack, access;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

static struct idt_entry *idt_entry(unsigned vector)
{
    struct { uint16_t limit; struct idt_entry *base; } __attribute__((packed)) table;

    asm volatile("sidt %0" : "=m"(table));
    return &table.base[vector];
}

static void change_gate(unsigned vector, uint8_t access, uint16_t selector, uint8_t stack)
{
    idt_entry(vector)->access = access;
    idt_entry(vector)->selector = selector;
    idt_entry(vector)->stack = stack;
}

static void set_handler(unsigned vector, void (*handler)(void))
{
    uintptr_t offset = (uintptr_t)handler;

    idt_entry(vector)->offset_low = offset;
    idt_entry(vector)->offset_middle = offset >> 16;
}

static void null_call(void)
{
    unmap(0);
    no_idt();
    call_null();
}

static void stack_overflow(void)
{
    unmap(small_stack);
    overflow_stack();
}

static void bad_cr3(void)
{
    load_cr3((uintptr_t)empty);
}

static void non_canonical(void)
{
    no_idt();
    jump_nowhere();
}

static void missing_idt(void)
{
    no_idt();
    divide_by_zero();
}

static void not_present(void)
{
    change_gate(PAGE_FAULT, ABSENT, KERNEL_CODE, 0);
    change_gate(DOUBLE_FAULT, ABSENT, KERNEL_CODE, 0);
    write_unmapped();
}

static void bad_tss(void)
{
    extern uint64_t gdt[];

    /* Available again, and too short for the interrupt stack table. */
    gdt[5] = (gdt[5] & ~0xFFFFull & ~(2ull << 40)) | 0x1F;
    asm volatile("ltr %w0" : : "r"(TASK));
    change_gate(PAGE_FAULT, INTERRUPT_GATE, KERNEL_CODE, 1);
    change_gate(DOUBLE_FAULT, INTERRUPT_GATE, KERNEL_CODE, 1);
    write_unmapped();
}

static void wrong_gate(void)
{
    change_gate(PAGE_FAULT, CALL_GATE, KERNEL_CODE, 0);
    change_gate(DOUBLE_FAULT, CALL_GATE, KERNEL_CODE, 0);
    write_unmapped();
}

static void fault_in_handler(void)
{
    unmap(small_stack);
    set_handler(PAGE_FAULT, faulting_handler);
    write_on_small_stack();
}

static void loop_in_handler(void)
{
    set_handler(INVALID_OPCODE, looping_handler);
    undefined();
}

static void no_execute(void)
{
    uint32_t low, high;

    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xC0000080));
    asm volatile("wrmsr" : : "a"(low | 1 << 11), "d"(high), "c"(0xC0000080));
    *page_entry(empty) |= 1ull << 63;
    asm volatile("invlpg %0" : : "m"(empty) : "memory");
    no_idt();
    call_data(empty);
}

static void bad_segment(void)
{
    no_idt();
    load_bad_segment();
}

static void invalid_opcode(void)
{
    change_gate(INVALID_OPCODE, INTERRUPT_GATE, 0x88, 0);
    change_gate(GENERAL_PROTECTION, INTERRUPT_GATE, 0x88, 0);
    change_gate(DOUBLE_FAULT, INTERRUPT_GATE, 0x88, 0);
    undefined();
}

static void reserved_bit(void)
{
    pml4[1] = pml4[0] | LARGE; /* a bit that is reserved at this level */
    no_idt();
    read_reserved();
}

static void panic(void)
{
    report_panic();
}

/* One from the own local APIC, beyond the IDT. */
static void interrupt(void)
{
    enum { APIC_BASE = 0x1B, X2APIC = 0xC00, SPURIOUS = 0x80F, SELF_IPI = 0x83F };

    write_msr(APIC_BASE, read_msr(APIC_BASE) | X2APIC);
    write_msr(SPURIOUS, 0x1FF);
    write_msr(SELF_IPI, 0x60);
    change_gate(GENERAL_PROTECTION, ABSENT, KERNEL_CODE, 0);
    change_gate(DOUBLE_FAULT, ABSENT, KERNEL_CODE, 0);
    await_interrupt();
}

static void halt(void)
{
    halt_for_ever();
}

static const struct {
    const char *name;
    void (*die)(void);
} ways[] = {
    { "null-call", null_call },         { "stack-overflow", stack_overflow },
    { "bad-cr3", bad_cr3 },             { "non-canonical", non_canonical },
    { "missing-idt", missing_idt },     { "not-present", not_present },
    { "bad-tss", bad_tss },             { "wrong-gate", wrong_gate },
    { "fault-in-handler", fault_in_handler }, { "no-execute", no_execute },
    { "bad-segment", bad_segment },     { "invalid-opcode", invalid_opcode },
    { "reserved-bit", reserved_bit },   { "dead-loop", dead_loop },
    { "panic", panic },                 { "halt", halt },
    { "interrupt", interrupt },         { "loop-in-handler", loop_in_handler },
};

int guest(uint32_t magic, uintptr_t info)
{
    const char *cmdline = start_info_cmdline(info);

    (void)magic;
    trap_install();
    map_small();
    for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (cmdline_is(cmdline, "how", ways[i].name)) {
            if (!cmdline_is(cmdline, "say", "nothing"))
                print("%s\n", ways[i].name);
            ways[i].die();
            return 1; /* still there */
        }
    }
    return 2;
}

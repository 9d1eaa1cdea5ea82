/* The descriptor tables of long mode (Intel SDM vol. 3, 3.4.5, 6.14, 7.7) and what traps do. */
#include "trap.h"
#include "exit.h"
#include "print.h"

enum { VECTORS = 48, GATE_SIZE = 16 };

struct gate {
    uint16_t offset_low, selector;
    uint8_t stack, type;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

struct table {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

struct task {
    uint32_t reserved;
    uint64_t stacks[3]; /* RSP on entry to rings 0-2 */
    uint8_t rest[74];
    uint16_t io_map;
} __attribute__((packed));

struct fixup {
    uint64_t fault, resume;
};

extern const char trap_gates[];
extern const struct fixup fixups[], fixups_end[];
void load_tables(const struct table *gdt, const struct table *idt);

volatile unsigned trap_vector = NO_TRAP;
static char trap_stack[4096] __attribute__((aligned(16)));
static struct gate idt[VECTORS];
static struct task task;
uint64_t gdt[] = { /* smp.S uses it too */
    0,
    0x00AF9B000000FFFF, /* KERNEL_CODE */
    0x00CF93000000FFFF, /* KERNEL_DATA */
    0x00CFF3000000FFFF, /* USER_DATA */
    0x00AFFB000000FFFF, /* USER_CODE */
    0, 0,               /* TASK */
};

void trap_install(void)
{
    uint64_t base = (uintptr_t)&task;
    struct table gdt_pointer = { sizeof(gdt) - 1, (uintptr_t)gdt };
    struct table idt_pointer = { sizeof(idt) - 1, (uintptr_t)idt };

    task.stacks[0] = (uintptr_t)(trap_stack + sizeof(trap_stack));
    task.io_map = sizeof(task); /* beyond the limit: no port is open to ring 3 */
    gdt[5] = (sizeof(task) - 1) | (base & 0xFFFFFF) << 16 | 0x89ull << 40 | (base >> 24 & 0xFF) << 56;
    gdt[6] = base >> 32;
    for (unsigned i = 0; i < VECTORS; i++) {
        uint64_t offset = (uintptr_t)trap_gates + i * GATE_SIZE;

        idt[i] = (struct gate){ offset, KERNEL_CODE, 0, 0x8E, offset >> 16, offset >> 32, 0 };
    }
    load_tables(&gdt_pointer, &idt_pointer);
}

int __attribute__((weak)) on_trap(struct trap *trap)
{
    (void)trap;
    return 0;
}

void trap(struct trap *trap)
{
    if (on_trap(trap))
        return;
    for (const struct fixup *fixup = fixups; fixup < fixups_end; fixup++) {
        if (fixup->fault == trap->rip) {
            trap_vector = trap->vector;
            trap->rip = fixup->resume;
            return;
        }
    }
    print("trap %u error 0x%lx at 0x%lx\n", (unsigned)trap->vector, trap->error, trap->rip);
    finish(57);
}

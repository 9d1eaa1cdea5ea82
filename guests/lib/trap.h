/*
 * Interrupts and exceptions in long mode: a GDT with user segments and a TSS, an IDT whose every
 * gate comes to C, and instructions that are allowed to fault.
 */
#pragma once
#include <stdint.h>

enum {
    KERNEL_CODE = 0x08,
    KERNEL_DATA = 0x10,
    USER_DATA = 0x18,
    USER_CODE = 0x20,
    TASK = 0x28,
    INVALID_OPCODE = 6,
    GENERAL_PROTECTION = 13,
    PAGE_FAULT = 14,
    NO_TRAP = 256,
};

struct trap {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
};

void trap_install(void);

/* The guest's own: true where it dealt with the trap. Without one, an unexpected trap ends it (57). */
int on_trap(struct trap *trap);

/* The vector of the last fault in a GUARDED instruction; NO_TRAP where it ran. */
extern volatile unsigned trap_vector;

/* An instruction for asm that is skipped when it faults: trap_vector tells. */
#define GUARDED(instruction)                                                                      \
    "movl $256, trap_vector(%%rip)\n"                                                             \
    "771: " instruction "\n"                                                                      \
    "772:\n"                                                                                      \
    ".pushsection .fixups, \"a\"\n"                                                               \
    ".quad 771b, 772b\n"                                                                          \
    ".popsection\n"

/* The way of a processor from its SIPI to C. */
#pragma once
#include <stdint.h>

/* Copied to 0x8000, where the SIPI of vector 8 starts a processor in real mode. */
extern const char trampoline[], trampoline_end[];

/* Called by each with its number, from 1 on. */
void processor(uint32_t index);

enum { APIC = 0xFEE00000, APIC_TASK_PRIORITY = 0x80, APIC_SPURIOUS = 0xF0, APIC_ICR = 0x300 };
enum { ALL_BUT_ME = 0xC0000, ASSERT = 0x4000, INIT = 0x500, STARTUP = 0x600, TRAMPOLINE = 0x8000 };
enum { APIC_ENABLE = 0x1FF }; /* in APIC_SPURIOUS */

static inline volatile uint32_t *apic(uint32_t offset)
{
    return (volatile uint32_t *)(uintptr_t)(APIC + offset);
}

static inline void pause_a_little(void)
{
    for (unsigned i = 0; i < 1000; i++)
        asm volatile("pause");
}

/* Puts the other processors where they wait for a SIPI. */
static inline void init_others(void)
{
    *apic(APIC_SPURIOUS) = APIC_ENABLE;
    *apic(APIC_ICR) = ALL_BUT_ME | ASSERT | INIT;
    pause_a_little(); /* 10 ms on hardware of 1997, nothing here */
}

/* Starts them. */
static inline void start_others(void)
{
    const char *from = trampoline;

    for (char *to = (char *)TRAMPOLINE; from < trampoline_end; from++, to++)
        *(volatile char *)to = *from;
    init_others();
    *apic(APIC_ICR) = ALL_BUT_ME | ASSERT | STARTUP | TRAMPOLINE >> 12;
    pause_a_little();
    *apic(APIC_ICR) = ALL_BUT_ME | ASSERT | STARTUP | TRAMPOLINE >> 12;
}

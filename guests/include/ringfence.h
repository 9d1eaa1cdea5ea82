/*
 * ringfence.h: how a guest in C takes part in "boot once, test many". It needs no C library, and
 * works in protected and long mode, in C11 and C++11, with gcc and clang:
 *
 *     #include "ringfence.h"
 *
 *     RINGFENCE_TEST(addition) { RINGFENCE_CHECK(1 + 1 == 2); }
 *     RINGFENCE_TEST(heap) { RINGFENCE_CHECK(allocate(4096) != 0); }
 *
 *     void kernel_main(void)
 *     {
 *         start_everything();      // once: each test gets a copy of the machine as it is then
 *         ringfence_run_tests();   // does not return
 *     }
 *
 * `ringfence test kernel.elf` boots it once a processor, takes a checkpoint where it is ready, and
 * puts the machine back to it for each test: whatever a test breaks, the next finds whole. Under
 * `ringfence run`, QEMU with -device isa-debug-exit,iobase=0xf4, or no VMM at all, it runs all
 * tests one after the other.
 *
 * A guest that has a test table of its own uses what ringfence_run_tests() is made of.
 */
#pragma once

/* The mailbox, the debug exit and COM1. */
#define RINGFENCE_ANNOUNCE 0x5E0 /* OUT: a byte of a test's name, a NUL ends it; IN: 'M' where there is a mailbox */
#define RINGFENCE_READY 0x5E1    /* OUT: the machine takes its checkpoint behind this instruction */
#define RINGFENCE_NEXT 0x5E2     /* IN, 8 bits: the next byte of the name of the test to run; 16 bits: its number */
#define RINGFENCE_EXIT 0xF4      /* OUT: the verdict */
#define RINGFENCE_SERIAL 0x3F8

/* Verdicts: all others are failures too. */
#define RINGFENCE_PASSED 0
#define RINGFENCE_FAILED 1
#define RINGFENCE_SKIPPED 77

/* No test is asked for: nobody listens, or everything is to run. */
#define RINGFENCE_NONE 0xFFFF

static inline void ringfence_out8(unsigned short port, unsigned char value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline unsigned char ringfence_in8(unsigned short port)
{
    unsigned char value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline unsigned short ringfence_in16(unsigned short port)
{
    unsigned short value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* Ends the machine: the guest's last words. */
static inline __attribute__((noreturn)) void ringfence_exit(unsigned verdict)
{
    __asm__ volatile("outl %0, %1" : : "a"(verdict), "Nd"((unsigned short)RINGFENCE_EXIT) : "memory");
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* Prints on COM1, polled. */
static inline void ringfence_print(const char *text)
{
    for (; *text; text++) {
        while (!(ringfence_in8(RINGFENCE_SERIAL + 5) & 0x20)) /* transmitter empty */
            ;
        ringfence_out8(RINGFENCE_SERIAL, (unsigned char)*text);
    }
}

/* The same, a number in decimal or hexadecimal (base 10 or 16). */
static inline void ringfence_print_number(unsigned long value, unsigned base)
{
    char digits[24], *at = digits + sizeof(digits) - 1;

    *at = '\0';
    do
        *--at = "0123456789abcdef"[value % base];
    while (value /= base);
    ringfence_print(at);
}

/* Is there a runner's mailbox? */
static inline int ringfence_mailbox(void)
{
    return ringfence_in8(RINGFENCE_ANNOUNCE) == 'M';
}

/* Makes a test known: 1 to 255 bytes of UTF-8 without controls, each name once, at most 4096 of them. */
static inline void ringfence_announce(const char *name)
{
    do
        ringfence_out8(RINGFENCE_ANNOUNCE, (unsigned char)*name);
    while (*name++);
}

/* Everything is started. Behind this call each test begins, in a copy of the machine of its own. */
static inline void ringfence_ready(void)
{
    ringfence_out8(RINGFENCE_READY, 1);
}

/* The number of the test to run, in the order of announcing from 0, or RINGFENCE_NONE. */
static inline unsigned ringfence_next(void)
{
    return ringfence_in16(RINGFENCE_NEXT);
}

/* One test of the table. Its alignment is its size, so that the entries of all files form an array. */
struct ringfence_test {
    const char *name;
    void (*run)(unsigned *ringfence_verdict);
} __attribute__((aligned(16)));

#ifdef __has_attribute
#if __has_attribute(retain)
#define RINGFENCE_RETAIN __attribute__((retain)) /* from --gc-sections, for tests that a library holds */
#endif
#endif
#ifndef RINGFENCE_RETAIN
#define RINGFENCE_RETAIN
#endif

/* By this a runner knows the image of a guest that takes part. */
static const char ringfence_marker[] RINGFENCE_RETAIN __attribute__((used)) = "ringfence-mailbox-1";

/* Defines a test, in any file of the guest: RINGFENCE_TEST(name) { ... } */
#define RINGFENCE_TEST(name)                                                                      \
    static void ringfence_test_##name(unsigned *ringfence_verdict);                               \
    static const struct ringfence_test ringfence_entry_##name RINGFENCE_RETAIN                    \
        __attribute__((used, section("ringfence_tests"))) = { #name, ringfence_test_##name };     \
    static void ringfence_test_##name(unsigned *ringfence_verdict __attribute__((unused)))

/* Ends the test as failed where the condition does not hold; only in the test's own function. */
#define RINGFENCE_CHECK(condition)                                                                \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            ringfence_complain(__FILE__, __LINE__, #condition);                                   \
            *ringfence_verdict = RINGFENCE_FAILED;                                                \
            return;                                                                               \
        }                                                                                         \
    } while (0)

/* Ends the test as skipped: it cannot run here. */
#define RINGFENCE_SKIP(reason)                                                                    \
    do {                                                                                          \
        ringfence_print("skipped: " reason "\n");                                                 \
        *ringfence_verdict = RINGFENCE_SKIPPED;                                                   \
        return;                                                                                   \
    } while (0)

static __attribute__((noinline, unused)) void ringfence_complain(const char *file, unsigned line,
                                                                const char *condition)
{
    ringfence_print(file);
    ringfence_print(":");
    ringfence_print_number(line, 10);
    ringfence_print(": not so: ");
    ringfence_print(condition);
    ringfence_print("\n");
}

/* The table, as the linker puts it together. */
extern const struct ringfence_test __start_ringfence_tests[], __stop_ringfence_tests[];

static inline unsigned ringfence_count(void)
{
    return (unsigned)(__stop_ringfence_tests - __start_ringfence_tests);
}

/* Runs one test; its verdict. */
static inline unsigned ringfence_run(unsigned number)
{
    unsigned verdict = RINGFENCE_PASSED;

    __start_ringfence_tests[number].run(&verdict);
    return verdict;
}

/* Runs all tests in this one machine, and ends it: with RINGFENCE_FAILED where one failed. */
static inline __attribute__((noreturn)) void ringfence_run_all(void)
{
    unsigned count = ringfence_count(), failed = 0;

    for (unsigned i = 0; i < count; i++) {
        unsigned verdict = ringfence_run(i);
        const char *word = verdict == RINGFENCE_PASSED    ? " ... ok\n"
                           : verdict == RINGFENCE_SKIPPED ? " ... ignored\n"
                                                          : " ... FAILED\n";

        ringfence_print("test ");
        ringfence_print(__start_ringfence_tests[i].name);
        ringfence_print(word);
        failed += verdict != RINGFENCE_PASSED && verdict != RINGFENCE_SKIPPED;
    }
    ringfence_print_number(count, 10);
    ringfence_print(" tests, ");
    ringfence_print_number(failed, 10);
    ringfence_print(" failed\n");
    ringfence_exit(failed ? RINGFENCE_FAILED : RINGFENCE_PASSED);
}

/* Announces the tests, runs the one that is asked for, and ends the machine with its verdict. */
static inline __attribute__((noreturn)) void ringfence_run_tests(void)
{
    unsigned number = RINGFENCE_NONE;

    if (ringfence_mailbox()) {
        for (unsigned i = 0; i < ringfence_count(); i++)
            ringfence_announce(__start_ringfence_tests[i].name);
        ringfence_ready();
        number = ringfence_next();
    }
    if (number < ringfence_count())
        ringfence_exit(ringfence_run(number));
    ringfence_run_all();
}

/*
 * A guest whose announcements are not to be believed, for the tests of the runner: how=WORD says in
 * which way. Each of its tests would pass if nobody looked: where nobody chooses, it passes.
 */
#include <ringfence.h>
#include "guest.h"
#include "start_info.h"

enum { PM1A_CONTROL = 0x604, SLP_EN = 1 << 13 };

static const struct {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed)) no_idt = { 0, 0 };

static void repeat(char *name, char c, unsigned times)
{
    while (times--)
        *name++ = c;
    *name = '\0';
}

/* A name that no other boot has: its time. */
static void name_of_now(char *name)
{
    uint32_t low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    for (unsigned i = 0; i < 8; i++, low >>= 4)
        name[i] = (char)('a' + (low & 15));
    name[8] = '\0';
}

static void announce_all(const char *cmdline)
{
    char name[301];

    if (cmdline_is(cmdline, "how", "many")) {
        for (unsigned i = 0; i < 4097; i++) {
            for (unsigned bit = 0; bit < 13; bit++)
                name[bit] = (char)('0' + (i >> bit & 1));
            name[13] = '\0';
            ringfence_announce(name);
        }
    } else if (cmdline_is(cmdline, "how", "long")) {
        repeat(name, 'x', 300);
        ringfence_announce(name);
    } else if (cmdline_is(cmdline, "how", "bytes")) {
        ringfence_announce("a\xff");
        ringfence_announce("a\xfe");
    } else if (cmdline_is(cmdline, "how", "colours")) {
        ringfence_announce("a\x1b[31m");
    } else if (cmdline_is(cmdline, "how", "moody")) {
        name_of_now(name);
        ringfence_announce(name);
    } else if (!cmdline_is(cmdline, "how", "silent")) {
        ringfence_announce("one");
        ringfence_announce(cmdline_is(cmdline, "how", "twins") ? "one" : "two");
    }
}

/* What the test of this number does; the first is harmless but for what its machine is told. */
static void run(unsigned number, const char *cmdline)
{
    if (cmdline_is(cmdline, "how", "late"))
        ringfence_announce("three");
    if (cmdline_is(cmdline, "how", "restart") && number == 0)
        outb(0x64, 0xFE);
    if (cmdline_is(cmdline, "how", "quits"))
        outw(PM1A_CONTROL, SLP_EN);
    if (cmdline_is(cmdline, "how", "rude") && number == 0) {
        /* U+FFFF, which no XML has; commands to a CI system; controls; a line's end of YAML's. */
        ringfence_print("\xef\xbf\xbf\n::stop-commands::mine\n::error::no\x7f\x1b[2J\xe2\x80\xa8\n");
        ringfence_exit(3);
    }
    ringfence_exit(RINGFENCE_PASSED);
}

int guest(uint32_t magic, uintptr_t info)
{
    const char *cmdline = start_info_cmdline(info);
    char name[9];

    (void)magic;
    if (cmdline_is(cmdline, "how", "plain"))
        ringfence_exit(RINGFENCE_PASSED);
    while (cmdline_is(cmdline, "how", "hangs"))
        asm volatile("pause");
    if (cmdline_is(cmdline, "how", "off"))
        outw(PM1A_CONTROL, SLP_EN);
    if (cmdline_is(cmdline, "how", "dies"))
        asm volatile("lidt %0; ud2" : : "m"(no_idt));
    if (cmdline_is(cmdline, "how", "rude"))
        ringfence_print("::error::before it is ready\n");
    announce_all(cmdline);
    if (cmdline_is(cmdline, "how", "more")) { /* of which the first boot knows nothing */
        name_of_now(name);
        ringfence_announce(name);
    }
    if (cmdline_is(cmdline, "how", "early"))
        ringfence_exit(RINGFENCE_PASSED);
    ringfence_ready();
    run(ringfence_next(), cmdline);
    return 0;
}

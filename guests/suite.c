/*
 * The sample suite: 200 tiny tests of what a processor and a machine promise, in suite/. Each runs
 * in a copy of the machine that booted once (`ringfence test`), or in a machine of its own:
 * test=NAME or test=NUMBER on the command line runs that one alone, as if nobody listened.
 */
#include <ringfence.h>
#include "guest.h"
#include "start_info.h"
#include "trap.h"

/* The test that the command line names, by name or by number; RINGFENCE_NONE where it names none. */
static unsigned named(const char *cmdline)
{
    unsigned count = ringfence_count();
    unsigned number = cmdline_number(cmdline, "test", RINGFENCE_NONE);

    if (!cmdline_value(cmdline, "test"))
        return RINGFENCE_NONE;
    if (cmdline_value(cmdline, "test")[0] <= '9')
        return number;
    for (unsigned i = 0; i < count; i++) {
        if (cmdline_is(cmdline, "test", __start_ringfence_tests[i].name))
            return i;
    }
    ringfence_print("no such test\n");
    ringfence_exit(62);
}

int guest(uint32_t magic, uintptr_t info)
{
    unsigned number = named(start_info_cmdline(info));

    (void)magic;
    trap_install();
    if (number != RINGFENCE_NONE)
        ringfence_exit(ringfence_run(number));
    ringfence_run_tests();
}

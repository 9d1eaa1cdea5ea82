/* PVH's start-of-day structure, which flat and plain ELF images get too. */
#include "start_info.h"
#include "exit.h"
#include "serial.h"

const struct start_info *start_info(uintptr_t address)
{
    const struct start_info *info = (const void *)address;

    if (info->magic != START_INFO_MAGIC) {
        put_text("no start_info\n");
        finish(62);
    }
    return info;
}

const char *start_info_cmdline(uintptr_t address)
{
    uintptr_t cmdline = start_info(address)->cmdline;

    return cmdline ? (const char *)cmdline : "";
}

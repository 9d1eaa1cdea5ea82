/* Start info: prints what PVH's start_info hands over. Flat and plain ELF images get it too. */
#include "guest.h"
#include "print.h"
#include "report.h"
#include "start_info.h"

int guest(uint32_t magic, uintptr_t address)
{
    const struct start_info *info = start_info(address);
    const struct start_module *modules = (const void *)(uintptr_t)info->modules;
    const struct start_memory *memory = (const void *)(uintptr_t)info->memory_map;

    (void)magic;
    print("version=%u\n", info->version);
    print("cmdline=%s\n", start_info_cmdline(address));
    print("modules=%u\n", info->module_count);
    for (uint32_t i = 0; i < info->module_count; i++) {
        uintptr_t args = modules[i].cmdline;

        report_module(i, modules[i].start, modules[i].size, args ? (const char *)args : "");
    }
    for (uint32_t i = 0; i < info->memory_map_entries; i++)
        report_memory(memory[i].start, memory[i].size, memory[i].type);
    report_memory_sums();
    return info->version == 1 ? 0 : 1;
}

/* Multiboot 1: prints what the information structure says (specification 0.6.96, section 3.3). */
#include "guest.h"
#include "print.h"
#include "report.h"

enum { BOOT_MAGIC = 0x2BADB002, HAS_MEMORY = 1, HAS_CMDLINE = 4, HAS_MODULES = 8, HAS_MAP = 64 };

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
    uint32_t mmap_length, mmap_addr;
};

struct multiboot_module {
    uint32_t start, end, string, reserved;
};

struct multiboot_memory {
    uint32_t size; /* of what follows */
    uint64_t start, length;
    uint32_t type;
} __attribute__((packed));

static const void *at(uint32_t address)
{
    return (const void *)(uintptr_t)address;
}

static void report_map(const struct multiboot_info *info)
{
    uint32_t next = info->mmap_addr;

    while (next < info->mmap_addr + info->mmap_length) {
        const struct multiboot_memory *entry = at(next);

        report_memory(entry->start, entry->length, entry->type);
        next += entry->size + sizeof(entry->size);
    }
    report_memory_sums();
}

int guest(uint32_t magic, uintptr_t address)
{
    const struct multiboot_info *info = (const void *)address;

    if (magic != BOOT_MAGIC) {
        print("magic=0x%x\n", magic);
        return 1;
    }
    print("flags=0x%x\n", info->flags);
    if (info->flags & HAS_MEMORY)
        print("mem_lower=%u\nmem_upper=%u\n", info->mem_lower, info->mem_upper);
    if (info->flags & HAS_CMDLINE)
        print("cmdline=%s\n", (const char *)at(info->cmdline));
    if (info->flags & HAS_MODULES) {
        const struct multiboot_module *module = at(info->mods_addr);

        print("modules=%u\n", info->mods_count);
        for (uint32_t i = 0; i < info->mods_count; i++, module++) {
            report_module(i, module->start, module->end - module->start, at(module->string));
            if (module->start % 4096)
                return 2; /* the header asked for page alignment */
        }
    }
    if (!(info->flags & HAS_MAP))
        return 3;
    report_map(info);
    return 0;
}

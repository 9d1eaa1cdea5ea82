/* Multiboot 2: prints the tags of the boot information (specification 2.0, section 3.6). */
#include "guest.h"
#include "print.h"
#include "report.h"

enum { BOOT_MAGIC = 0x36D76289 };
enum { END = 0, CMDLINE = 1, LOADER = 2, MODULE = 3, BASIC_MEMORY = 4, MEMORY_MAP = 6 };

struct tag {
    uint32_t type, size;
    union {
        char text[0];
        struct {
            uint32_t start, end;
            char args[];
        } module;
        struct {
            uint32_t lower, upper;
        } basic;
        struct {
            uint32_t entry_size, entry_version;
            char entries[];
        } map;
    };
};

struct entry {
    uint64_t start, length;
    uint32_t type, reserved;
};

static unsigned modules;

static void report_map(const struct tag *tag)
{
    const char *end = (const char *)tag + tag->size;

    for (const char *next = tag->map.entries; next < end; next += tag->map.entry_size) {
        const struct entry *entry = (const void *)next;

        report_memory(entry->start, entry->length, entry->type);
    }
    report_memory_sums();
}

static void report(const struct tag *tag)
{
    switch (tag->type) {
    case CMDLINE:
        print("cmdline=%s\n", tag->text);
        break;
    case LOADER:
        print("loader=%s\n", tag->text);
        break;
    case MODULE:
        report_module(modules++, tag->module.start, tag->module.end - tag->module.start,
                      tag->module.args);
        break;
    case BASIC_MEMORY:
        print("mem_lower=%u\nmem_upper=%u\n", tag->basic.lower, tag->basic.upper);
        break;
    case MEMORY_MAP:
        report_map(tag);
        break;
    }
}

int guest(uint32_t magic, uintptr_t address)
{
    uint32_t total = *(const uint32_t *)address;
    uint32_t offset = 8;

    if (magic != BOOT_MAGIC || address % 8) {
        print("magic=0x%x at 0x%lx\n", magic, (unsigned long)address);
        return 1;
    }
    while (offset < total) {
        const struct tag *tag = (const void *)(address + offset);

        if (tag->type == END) {
            print("modules=%u\n", modules);
            return tag->size == 8 && offset + 8 == total ? 0 : 2;
        }
        report(tag);
        offset += (tag->size + 7) & ~7u;
    }
    return 3; /* no end tag */
}

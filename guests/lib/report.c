/* What a boot protocol handed over, printed the same way for each: one `key=value` a line. */
#include "report.h"
#include "exit.h"
#include "print.h"

enum { RAM = 1, MAX_ENTRIES = 32 };

extern const char _start[], load_end[], bss_start[], image_end[];

static struct {
    uint64_t start, end;
} entries[MAX_ENTRIES];
static unsigned entry_count;
static uint64_t ram;

static int overlaps(unsigned long long start, unsigned long long end, const char *low,
                    const char *high)
{
    return start < (uintptr_t)high && end > (uintptr_t)low;
}

void report_module(unsigned index, unsigned long long start, unsigned long long size,
                   const char *args)
{
    const uint8_t *bytes = (const uint8_t *)(uintptr_t)start;

    print("module%u=%s\n", index, args);
    print("module%u.size=%u\n", index, (uint32_t)size);
    if (overlaps(start, start + size, _start, load_end) ||
        overlaps(start, start + size, bss_start, image_end)) {
        print("module%u lies at 0x%llx, on the image\n", index, start);
        finish(59);
    }
    if (size < 4)
        return;
    print("module%u.head=%02x%02x%02x%02x\n", index, bytes[0], bytes[1], bytes[2], bytes[3]);
    print("module%u.tail=%02x%02x\n", index, bytes[size - 2], bytes[size - 1]);
}

void report_memory(unsigned long long start, unsigned long long size, uint32_t type)
{
    print("memory%u=0x%llx+0x%llx type %u\n", entry_count, start, size, type);
    for (unsigned i = 0; i < entry_count; i++) {
        if (start < entries[i].end && start + size > entries[i].start) {
            print("memory%u overlaps memory%u\n", entry_count, i);
            finish(58);
        }
    }
    if (entry_count < MAX_ENTRIES) {
        entries[entry_count].start = start;
        entries[entry_count].end = start + size;
        entry_count++;
    }
    if (type == RAM)
        ram += size;
}

void report_memory_sums(void)
{
    /* Rounded up: the reserved pages below 1 MiB are not RAM, but less than 1 MiB. */
    print("memory_entries=%u\n", entry_count);
    print("ram_mib=%u\n", (uint32_t)((ram + 0xFFFFF) >> 20));
}

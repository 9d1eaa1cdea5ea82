/*
 * Linux: prints what the zero page says (Documentation/arch/x86/zero-page.rst), where a kernel
 * started by the 64-bit or 32-bit boot protocol finds its command line, initrd and memory map.
 */
#include "guest.h"
#include "print.h"
#include "report.h"

struct e820_entry {
    uint64_t start, size;
    uint32_t type;
} __attribute__((packed));

struct boot_params {
    uint8_t before_ramdisk[0xC0];
    uint32_t ext_ramdisk_image, ext_ramdisk_size, ext_cmd_line_ptr;
    uint8_t before_e820_entries[0x1E8 - 0xCC];
    uint8_t e820_entries;
    uint8_t before_sentinel[6];
    uint8_t sentinel;
    uint8_t before_header;
    uint8_t setup_sects;
    uint8_t before_boot_flag[12];
    uint16_t boot_flag;
    uint16_t jump;
    char magic[4];
    uint16_t version;
    uint8_t before_loader[8];
    uint8_t type_of_loader, loadflags;
    uint16_t setup_move_size;
    uint32_t code32_start, ramdisk_image, ramdisk_size, bootsect_kludge;
    uint16_t heap_end_ptr;
    uint8_t ext_loader[2];
    uint32_t cmd_line_ptr;
    uint8_t before_e820_table[0x2D0 - 0x22C];
    struct e820_entry e820_table[128];
} __attribute__((packed));

_Static_assert(offsetof(struct boot_params, e820_entries) == 0x1E8, "e820_entries");
_Static_assert(offsetof(struct boot_params, boot_flag) == 0x1FE, "boot_flag");
_Static_assert(offsetof(struct boot_params, type_of_loader) == 0x210, "type_of_loader");
_Static_assert(offsetof(struct boot_params, cmd_line_ptr) == 0x228, "cmd_line_ptr");
_Static_assert(offsetof(struct boot_params, e820_table) == 0x2D0, "e820_table");

int guest(uint32_t magic, uintptr_t address)
{
    const struct boot_params *zero = (const void *)address;
    uint64_t initrd = zero->ramdisk_image | (uint64_t)zero->ext_ramdisk_image << 32;

    (void)magic;
    if (zero->boot_flag != 0xAA55 || *(const uint32_t *)zero->magic != 0x53726448)
        return 1; /* the setup header was not copied */
    if (zero->sentinel)
        return 2; /* the page was not cleared first */
    print("entry=%u-bit\n", (unsigned)sizeof(void *) * 8);
    print("version=0x%x\n", zero->version);
    print("type_of_loader=0x%x\n", zero->type_of_loader);
    print("cmdline=%s\n", (const char *)(uintptr_t)zero->cmd_line_ptr);
    if (zero->ramdisk_size)
        report_module(0, initrd, zero->ramdisk_size, "initrd");
    for (unsigned i = 0; i < zero->e820_entries; i++) {
        const struct e820_entry *entry = &zero->e820_table[i];

        report_memory(entry->start, entry->size, entry->type);
    }
    report_memory_sums();
    return zero->type_of_loader ? 0 : 3;
}

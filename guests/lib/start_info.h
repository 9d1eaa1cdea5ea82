/* PVH's start-of-day structure: xen/include/public/arch-x86/hvm/start_info.h, version 1. */
#pragma once
#include <stdint.h>
#include "cmdline.h"

enum { START_INFO_MAGIC = 0x336EC578, MEMORY_RAM = 1 };

struct start_info {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t module_count;
    uint64_t modules; /* struct start_module[module_count] */
    uint64_t cmdline;
    uint64_t rsdp;
    uint64_t memory_map; /* struct start_memory[memory_map_entries], version 1 on */
    uint32_t memory_map_entries;
    uint32_t reserved;
};

struct start_module {
    uint64_t start;
    uint64_t size;
    uint64_t cmdline;
    uint64_t reserved;
};

struct start_memory {
    uint64_t start;
    uint64_t size;
    uint32_t type;
    uint32_t reserved;
};

/* The structure; ends the guest with code 62 where `info` does not point at one. */
const struct start_info *start_info(uintptr_t info);
/* Its command line, empty where there is none. */
const char *start_info_cmdline(uintptr_t info);

/* What a boot protocol handed over, printed the same way for each: one `key=value` a line. */
#pragma once
#include <stdint.h>

/* Prints arguments, size, first four and last two bytes; ends the guest (59) on a bad place. */
void report_module(unsigned index, unsigned long long start, unsigned long long size,
                   const char *args);
/* One entry of the memory map, then the sums; ends the guest (58) where entries overlap. */
void report_memory(unsigned long long start, unsigned long long size, uint32_t type);
void report_memory_sums(void);

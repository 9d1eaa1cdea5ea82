/* The way of a processor from its SIPI to C. */
#pragma once
#include <stdint.h>

/* Copied to 0x8000, where the SIPI of vector 8 starts a processor in real mode. */
extern const char trampoline[], trampoline_end[];

/* Called by each with its number, from 1 on. */
void processor(uint32_t index);

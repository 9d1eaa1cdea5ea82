/* What walk.S calls, and its places for a debugger. */
#pragma once
#include <stdint.h>

enum { SIPI_PAGE = 0x8 }; /* where every processor starts, in units of 4 KiB */

/* Every processor but the first comes here, with its number. */
_Noreturn void processor(uint32_t index);

/* 1 + 2, in four instructions. */
uint32_t three_steps(void);
/* In ring 3; a trap at user_end. */
extern const char user_part[], user_end[];

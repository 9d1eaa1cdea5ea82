/* Page tables of the guest's own, where those that it was entered with do not do. */
#pragma once
#include <stdint.h>

extern uint64_t pml4[512]; /* the top table, for a processor that starts later */

enum { PAGE_USER = 4 };

/* Identity-maps the first `gib` GiB (at most 16) in 2 MiB pages; flags: PAGE_USER or 0. */
void map_identity(unsigned gib, unsigned flags);

/* What every guest written in C includes. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "exit.h"
#include "io.h"
#include "serial.h"

/*
 * The guest itself; the start-up files call it and hand its result to the debug exit.
 * magic: EAX as the boot protocol left it (multiboot's magic number).
 * info: the physical address of the protocol's information block.
 */
int guest(uint32_t magic, uintptr_t info);

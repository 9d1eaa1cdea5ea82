/* Parameters from a command line of the form `name=value name=value`. */
#pragma once
#include <stdint.h>

/* Where the value of `name` starts in `cmdline` (it ends at a space or NUL), or null. */
const char *cmdline_value(const char *cmdline, const char *name);
/* Its value as a number, decimal or 0x hexadecimal. */
uint32_t cmdline_number(const char *cmdline, const char *name, uint32_t otherwise);
/* Whether the value of `name` is exactly `value`. */
int cmdline_is(const char *cmdline, const char *name, const char *value);

/* A printf of forty lines, in a file of its own: a boot sector has no room for it. */
#pragma once

/* The few conversions that the guests need: %s %c %u %x %02x %lx %llx %%. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

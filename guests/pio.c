/*
 * Port I/O: every size, single and by string instructions, forwards, backwards and none at all,
 * on ports that something claims and on ports that nothing does. The exit code tells which check
 * failed.
 */
#include "guest.h"

enum { UNCLAIMED = 0x1230, DEBUG_CONSOLE = 0xE9, POST_CODE = 0x80, LARGE = 5000 };

#define STRING_IN(suffix)                                                                         \
    static void ins##suffix(uint16_t port, void *to, size_t count)                                \
    {                                                                                             \
        asm volatile("rep ins" #suffix : "+D"(to), "+c"(count) : "d"(port) : "memory");            \
    }
#define STRING_OUT(suffix)                                                                        \
    static void outs##suffix(uint16_t port, const void *from, size_t count)                       \
    {                                                                                             \
        asm volatile("rep outs" #suffix : "+S"(from), "+c"(count) : "d"(port) : "memory");         \
    }
STRING_IN(b)
STRING_IN(w)
STRING_IN(l)
STRING_OUT(b)
STRING_OUT(w)
STRING_OUT(l)

static uint8_t buffer[LARGE + 2];

/* Whether `count` bytes from the second on are `value`, and those around them untouched. */
static int filled(size_t count, uint8_t value)
{
    for (size_t i = 0; i < count; i++)
        if (buffer[1 + i] != value)
            return 0;
    return buffer[0] == 0x55 && buffer[1 + count] == 0x55;
}

static void clear(void)
{
    for (size_t i = 0; i < 64; i++)
        buffer[i] = 0x55;
}

static int single(void)
{
    outb(UNCLAIMED, 1);
    outw(UNCLAIMED, 2);
    outl(UNCLAIMED, 3);
    if (inb(UNCLAIMED) != UINT8_MAX)
        return 1;
    if (inw(UNCLAIMED) != UINT16_MAX)
        return 2;
    if (inl(UNCLAIMED) != UINT32_MAX)
        return 3;
    if (inb(DEBUG_CONSOLE) != DEBUG_CONSOLE)
        return 4;
    outb(POST_CODE, 0xAA);
    return 0;
}

static int string_in(void)
{
    clear();
    insb(UNCLAIMED, buffer + 1, 3);
    if (!filled(3, 0xFF))
        return 11;
    clear();
    insw(UNCLAIMED, buffer + 1, 3);
    if (!filled(6, 0xFF))
        return 12;
    clear();
    insl(UNCLAIMED, buffer + 1, 3);
    if (!filled(12, 0xFF))
        return 13;
    clear();
    insb(DEBUG_CONSOLE, buffer + 1, 16);
    if (!filled(16, DEBUG_CONSOLE))
        return 14;
    clear();
    insb(UNCLAIMED, buffer + 1, 0);
    return filled(0, 0) ? 0 : 15;
}

static int backwards(void)
{
    void *to = buffer + 4;
    size_t count = 4;

    clear();
    asm volatile("std; rep insb; cld" : "+D"(to), "+c"(count) : "d"(DEBUG_CONSOLE) : "memory");
    return filled(4, DEBUG_CONSOLE) && to == buffer ? 0 : 21;
}

/* More than one page, so that it takes more than one exit on any KVM. */
static int large(void)
{
    buffer[0] = buffer[LARGE + 1] = 0x55;
    insb(UNCLAIMED, buffer + 1, LARGE);
    return filled(LARGE, 0xFF) ? 0 : 22;
}

static void string_out(void)
{
    outsb(COM1, "rep outsb prints\n", 17);
    outsw(UNCLAIMED, buffer, 3);
    outsl(UNCLAIMED, buffer, 3);
    outsw(POST_CODE, buffer, 2);
}

int guest(uint32_t magic, uintptr_t info)
{
    int code = single();

    (void)magic, (void)info;
    if (!code)
        code = string_in();
    if (!code)
        code = backwards();
    if (!code)
        code = large();
    if (code)
        return code;
    string_out();
    put_text("pio is right\n");
    return 0;
}

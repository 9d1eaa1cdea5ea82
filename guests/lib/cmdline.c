/* Parameters from a command line of the form `name=value name=value`. */
#include "cmdline.h"
#include <stddef.h>

/* What follows `word` in `text`, or null where it does not start with it. */
static const char *after(const char *text, const char *word)
{
    while (*word)
        if (*text++ != *word++)
            return NULL;
    return text;
}

const char *cmdline_value(const char *cmdline, const char *name)
{
    while (*cmdline) {
        const char *value = after(cmdline, name);

        if (value && *value == '=')
            return value + 1;
        while (*cmdline && *cmdline != ' ')
            cmdline++;
        while (*cmdline == ' ')
            cmdline++;
    }
    return NULL;
}

uint32_t cmdline_number(const char *cmdline, const char *name, uint32_t otherwise)
{
    const char *text = cmdline_value(cmdline, name);
    uint32_t value = 0, base = 10;

    if (!text)
        return otherwise;
    if (after(text, "0x")) {
        base = 16;
        text += 2;
    }
    for (;; text++) {
        uint32_t digit = (unsigned char)*text;

        if (digit >= '0' && digit <= '9')
            digit -= '0';
        else if (digit >= 'a' && digit <= 'f' && base == 16)
            digit -= 'a' - 10;
        else
            return value;
        value = value * base + digit;
    }
}

int cmdline_is(const char *cmdline, const char *name, const char *value)
{
    const char *text = cmdline_value(cmdline, name);
    const char *end = text ? after(text, value) : NULL;

    return end && (*end == '\0' || *end == ' ');
}

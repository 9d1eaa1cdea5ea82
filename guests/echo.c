/* Echo: reads lines by polling the serial port and sends each back; ends on `quit`. */
#include "guest.h"

static int is_quit(const char *line)
{
    return line[0] == 'q' && line[1] == 'u' && line[2] == 'i' && line[3] == 't' && !line[4];
}

int guest(uint32_t magic, uintptr_t info)
{
    static char line[128];

    (void)magic, (void)info;
    put_text("ready\n");
    for (;;) {
        unsigned length = 0;
        char c;

        while ((c = get_char()) != '\n')
            if (c != '\r' && length < sizeof(line) - 1)
                line[length++] = c;
        line[length] = '\0';
        put_text("echo: ");
        put_text(line);
        put_char('\n');
        if (is_quit(line))
            return 0;
    }
}

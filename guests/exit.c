/*
 * Exit: ends with the code that its command line asks for.
 * code=N  the code; port=N  the debug exit to use (0xF4 or 0x501); width=8|16|32  of the write.
 */
#include "guest.h"
#include "print.h"
#include "start_info.h"

int guest(uint32_t magic, uintptr_t info)
{
    const char *cmdline = start_info_cmdline(info);
    uint32_t code = cmdline_number(cmdline, "code", 0);
    uint16_t port = cmdline_number(cmdline, "port", DEBUG_EXIT);

    (void)magic;
    print("exit code=%u port=0x%x\n", code, port);
    switch (cmdline_number(cmdline, "width", 32)) {
    case 8:
        outb(port, code);
        break;
    case 16:
        outw(port, code);
        break;
    default:
        outl(port, code);
    }
    return 61; /* the write did not end the machine */
}

/* CMOS: the memory size as a BIOS would leave it there, and a clock that shows a real time. */
#include "guest.h"
#include "print.h"

enum { INDEX = 0x70, DATA = 0x71, SECOND = 0, MINUTE = 2, HOUR = 4, DAY = 7, MONTH = 8, YEAR = 9 };
enum { STATUS_B = 0x0B, BINARY = 4 };
enum { BASE_KB = 0x15, EXTENDED_KB = 0x17, EXTENDED_KB_AGAIN = 0x30, ABOVE_16M = 0x34, ABOVE_4G = 0x5B };

static uint8_t cmos(uint8_t index)
{
    outb(INDEX, index);
    return inb(DATA);
}

static uint32_t word(uint8_t index)
{
    return cmos(index) | cmos(index + 1) << 8;
}

static unsigned clock(uint8_t index)
{
    uint8_t value = cmos(index);

    return cmos(STATUS_B) & BINARY ? value : (value >> 4) * 10 + (value & 0xF);
}

int guest(uint32_t magic, uintptr_t info)
{
    uint32_t above_4g = word(ABOVE_4G) | cmos(ABOVE_4G + 2) << 16;
    unsigned month = clock(MONTH), day = clock(DAY);

    (void)magic, (void)info;
    print("base_kb=%u\n", word(BASE_KB));
    print("extended_kb=%u\n", word(EXTENDED_KB));
    print("below_4g_mib=%u\n", 16 + word(ABOVE_16M) / 16);
    print("above_4g_mib=%u\n", above_4g / 16);
    print("date=%02u-%02u-%02u\n", clock(YEAR), month, day);
    if (word(EXTENDED_KB) != word(EXTENDED_KB_AGAIN))
        return 1;
    if (clock(SECOND) > 59 || clock(MINUTE) > 59 || (clock(HOUR) & 0x7F) > 23)
        return 2;
    return month >= 1 && month <= 12 && day >= 1 && day <= 31 ? 0 : 3;
}

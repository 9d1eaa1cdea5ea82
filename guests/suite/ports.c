/* Port I/O: the devices that every machine has, and ports that nobody claims. */
#include "suite.h"
#include "io.h"
#include "serial.h"

enum { NOBODY = 0x2F0, SCRATCH = COM1 + 7, LINE_CONTROL = COM1 + 3, DLAB = 0x80, CMOS_INDEX = 0x70, CMOS_DATA = 0x71 };

TEST(nobody_reads_all_ones_8)
{
    CHECK(inb(NOBODY) == 0xFF);
}

TEST(nobody_reads_all_ones_16)
{
    CHECK(inw(NOBODY) == 0xFFFF);
}

TEST(nobody_reads_all_ones_32)
{
    CHECK(inl(NOBODY) == 0xFFFFFFFF);
}

TEST(writes_to_nobody_vanish)
{
    outb(NOBODY, 0);
    CHECK(inb(NOBODY) == 0xFF);
}

TEST(in_8_keeps_the_rest_of_rax)
{
    uint64_t it = 0x1122334455667788;

    asm volatile("inb %%dx, %%al" : "+a"(it) : "d"(NOBODY));
    CHECK(it == 0x11223344556677FF);
}

TEST(in_32_clears_the_upper_half)
{
    uint64_t it = ~0ull;

    asm volatile("inl %%dx, %%eax" : "+a"(it) : "d"(NOBODY));
    CHECK(it == 0xFFFFFFFF);
}

TEST(insb_reads_a_row)
{
    uint8_t bytes[5] = { 0 }, *to = bytes;
    uint64_t count = 4;

    asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(NOBODY) : "memory");
    CHECK(count == 0 && to == bytes + 4 && bytes[0] == 0xFF && bytes[3] == 0xFF && bytes[4] == 0);
}

TEST(serial_scratch_register_holds)
{
    outb(SCRATCH, 0x5A);
    CHECK(inb(SCRATCH) == 0x5A);
}

TEST(serial_line_control_holds)
{
    outb(LINE_CONTROL, 0x1B);
    CHECK(inb(LINE_CONTROL) == 0x1B);
}

TEST(serial_divisor_hides_behind_dlab)
{
    outb(LINE_CONTROL, DLAB | 3);
    outb(COM1, 12);
    outb(COM1 + 1, 0);
    CHECK(inb(COM1) == 12);
    outb(LINE_CONTROL, 3);
    CHECK(!(inb(LINE_CONTROL) & DLAB));
}

TEST(serial_transmitter_is_empty)
{
    CHECK(inb(COM1_LSR) & LSR_THR_EMPTY);
}

TEST(cmos_knows_the_base_memory)
{
    outb(CMOS_INDEX, 0x15);
    uint8_t low = inb(CMOS_DATA);

    outb(CMOS_INDEX, 0x16);
    CHECK((inb(CMOS_DATA) << 8 | low) == 640);
}

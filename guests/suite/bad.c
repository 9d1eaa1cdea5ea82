/* Tests that go wrong in every way, between two that do not: what others must survive. */
#include "suite.h"
#include "io.h"

TEST(good_before)
{
    CHECK(opaque(1) == 1);
}

TEST(fails)
{
    CHECK(opaque(1) + 1 == 3);
}

TEST(fails_with_a_code)
{
    ringfence_exit(42);
}

TEST(is_skipped)
{
    RINGFENCE_SKIP("this machine is as good as any");
}

TEST(dies)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) none = { 0, 0 };

    asm volatile("lidt %0\n ud2" : : "m"(none));
    CHECK(0);
}

TEST(panics)
{
    outb(0x505, 1);
    CHECK(0);
}

TEST(halts)
{
    asm volatile("cli; hlt");
    CHECK(0);
}

TEST(hangs)
{
    for (;;)
        asm volatile("pause");
}

TEST(resets_the_machine)
{
    outb(0x64, 0xFE);
    CHECK(0);
}

TEST(prints_without_end)
{
    for (;;)
        ringfence_print("and on and ");
}

/* A word in every page of RAM, itself, its stack and its page tables among them. */
TEST(scribbles_over_all_memory)
{
    for (uintptr_t at = 16 << 20; at; at -= 4096) {
        *(volatile uint64_t *)(at - 8) = 0xBADBADBADBADBADB;
        *(volatile uint64_t *)(at - 4096) = 0xBADBADBADBADBADB;
    }
    CHECK(0);
}

TEST(changes_every_register)
{
    asm volatile("mov %0, %%dr0\n mov %0, %%cr2\n" : : "r"(opaque(0x5000)));
    asm volatile("wrmsr" : : "a"(0x1234), "d"(0), "c"(0xC0000102));
    outb(0x3FF, 0x77); /* the serial port's scratch register */
    outb(0x70, 0x0F);
    outb(0x71, 0x55);
}

TEST(good_after)
{
    uint64_t dr0;

    asm volatile("mov %%dr0, %0" : "=r"(dr0));
    CHECK(dr0 == 0);
    CHECK(inb(0x3FF) == 0);
    outb(0x70, 0x0F);
    CHECK(inb(0x71) != 0x55);
}

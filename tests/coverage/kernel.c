/*
 * A kernel of twenty lines, compiled by clang for coverage (tests/coverage.rs). It knows nothing of
 * that but the one symbol that keeps the compiler's runtime library away.
 */
int __llvm_profile_runtime;

static void leave(unsigned code)
{
    __asm__ volatile("outl %0, %1" : : "a"(code), "Nd"((unsigned short)0xF4));
}

static unsigned steps(unsigned n)
{
    unsigned count = 0;

    for (; n != 1; count++)
        n = n % 2 ? 3 * n + 1 : n / 2;
    return count;
}

unsigned never(unsigned n)
{
    return n + 1;
}

void _start(void)
{
    unsigned count = steps(6);

    if (count != 8)
        leave(never(count));
#ifdef DIES
    __asm__ volatile("ud2");
#endif
    leave(0);
    for (;;)
        __asm__ volatile("cli; hlt");
}

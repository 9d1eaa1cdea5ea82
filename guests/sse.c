/*
 * SSE: what a guest must switch on before its compiler may use it (Intel SDM vol. 3, 9.6), and
 * an addition to see that it works.
 */
#include "guest.h"

enum { CR0_MP = 1 << 1, CR0_EM = 1 << 2, CR0_TS = 1 << 3, CR4_OSFXSR = 1 << 9 };

int guest(uint32_t magic, uintptr_t info)
{
    static const float one[4] __attribute__((aligned(16))) = { 1, 2, 3, 4 };
    static uint32_t sum[4] __attribute__((aligned(16)));
    unsigned long cr0, cr4;

    (void)magic, (void)info;
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    cr0 = (cr0 & ~(CR0_EM | CR0_TS)) | CR0_MP;
    asm volatile("mov %0, %%cr0" : : "r"(cr0));
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | CR4_OSFXSR));
    put_text("sse is on\n");
    asm volatile("movaps %1, %%xmm0; addps %%xmm0, %%xmm0; movaps %%xmm0, %0" : "=m"(sum) : "m"(one));
    put_text("1 + 1 is 2\n");
    return sum[0] == 0x40000000 && sum[3] == 0x41000000 ? 0 : 1;
}

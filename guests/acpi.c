/*
 * ACPI tables (ACPI 6.5, chapter 5): searches the RSDP as kernels do, checks every checksum,
 * prints what FADT and MADT say, watches the PM timer that the FADT names, and powers off by the
 * control register that it names.
 */
#include "acpi.h"
#include "guest.h"
#include "print.h"

enum { LOCAL_APIC = 0, IO_APIC = 1, LOCAL_APIC_ENABLED = 1, TIMER_TICKS = 3580 /* 1 ms */ };

static void report_madt(const struct table *madt)
{
    unsigned processors = 0, controllers = 0;
    const uint8_t *entry = (const uint8_t *)madt + HEADER + 8;

    while (entry < (const uint8_t *)madt + madt->length) {
        processors += entry[0] == LOCAL_APIC && (entry[4] & LOCAL_APIC_ENABLED);
        controllers += entry[0] == IO_APIC;
        entry += entry[1];
    }
    print("local_apic=0x%x\nprocessors=%u\nio_apics=%u\n", u32(madt, HEADER), processors, controllers);
}

static void watch_timer(uint16_t port)
{
    uint32_t begin = inl(port), last = begin, now = begin;

    while (now - begin < TIMER_TICKS) {
        last = now;
        now = inl(port);
        if ((int32_t)(now - last) < 0)
            finish(5);
    }
    print("pm_timer=advances\n");
}

int guest(uint32_t magic, uintptr_t info)
{
    const void *rsdp = find_rsdp();
    const struct table *xsdt, *rsdt, *fadt, *madt, *dsdt;

    (void)magic, (void)info;
    if (!rsdp || sum(rsdp, 36))
        return 1;
    xsdt = at(u32(rsdp, 24));
    rsdt = at(u32(rsdp, 16));
    if (!is(xsdt, "XSDT") || !is(rsdt, "RSDT") || sum(xsdt, xsdt->length) || sum(rsdt, rsdt->length))
        return 2;
    fadt = find(xsdt, 8, "FACP");
    madt = find(xsdt, 8, "APIC");
    if (!fadt || fadt != find(rsdt, 4, "FACP") || madt != find(rsdt, 4, "APIC"))
        return 3;
    dsdt = at(u32(fadt, 40));
    if (!is(dsdt, "DSDT") || sum(dsdt, dsdt->length) || !is(at(u32(fadt, 36)), "FACS"))
        return 4;
    print("rsdp=0x%lx\n", (unsigned long)(uintptr_t)rsdp);
    if (madt)
        report_madt(madt);
    print("madt=%s\n", madt ? "yes" : "no");
    watch_timer(u32(fadt, 76));
    outw(u32(fadt, 64), SLP_EN); /* S5 has the type 0 */
    return 6;
}

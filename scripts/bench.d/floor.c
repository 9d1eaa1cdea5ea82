/*
 * The floor: the least that any program has to do to run a guest on KVM. One
 * processor in flat protected mode, 128 MiB in a memfd, a guest that writes
 * "hello\n" to port 0x3F8 and 0 to port 0xF4; the bytes go out as they come.
 *
 *   --cpuid  also hand the guest what KVM supports (most guests need that)
 *   --spin   the guest says hello and then runs for ever
 *
 * Built static by scripts/bench. Exits with what the guest wrote to 0xF4.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM = 128 << 20, ENTRY = 0x100000, COM1 = 0x3f8, EXIT = 0xf4, MAX_CPUID = 256 };

static const unsigned char guest[] = {
	0xbe, 0x1f, 0x00, 0x10, 0x00,	/* mov esi, message */
	0xb9, 0x06, 0x00, 0x00, 0x00,	/* mov ecx, 6 */
	0xba, 0xf8, 0x03, 0x00, 0x00,	/* mov edx, COM1 */
	0xac,				/* 1: lodsb */
	0xee,				/* out dx, al */
	0xe2, 0xfc,			/* loop 1b */
	0x31, 0xc0,			/* SPIN: xor eax, eax */
	0xba, 0xf4, 0x00, 0x00, 0x00,	/* mov edx, EXIT */
	0xef,				/* out dx, eax */
	0xf4,				/* hlt */
	0x90, 0x90, 0x90,		/* nop */
	'h', 'e', 'l', 'l', 'o', '\n',	/* message */
};
enum { SPIN = 19 };

static int check(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void set_cpuid(int kvm, int vcpu)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + MAX_CPUID * sizeof cpuid->entries[0]);

	if (!cpuid)
		err(1, "calloc");
	cpuid->nent = MAX_CPUID;
	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
	check(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
}

static void enter_protected_mode(int vcpu)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_regs regs = { .rip = ENTRY, .rflags = 2 };
	struct kvm_sregs sregs;

	data.selector = 16;
	data.type = 3;
	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 |= 1;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static int run(int vcpu, struct kvm_run *run)
{
	for (;;) {
		const char *data;

		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		data = (char *)run + run->io.data_offset;
		if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT)
			errx(1, "exit reason %u", run->exit_reason);
		if (run->io.port == EXIT)
			return *data;
		if (run->io.port == COM1 && write(1, data, 1) != 1)
			err(1, "write");
	}
}

int main(int argc, char **argv)
{
	int cpuid = 0, spin = 0, kvm, vm, vcpu, fd;
	struct kvm_userspace_memory_region slot = { .memory_size = RAM };
	unsigned char *ram;
	void *state;

	while (*++argv) {
		cpuid |= !strcmp(*argv, "--cpuid");
		spin |= !strcmp(*argv, "--spin");
	}
	(void)argc;
	kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	fd = check(memfd_create("guest", MFD_CLOEXEC), "memfd_create");
	check(ftruncate(fd, RAM), "ftruncate");
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ram == MAP_FAILED)
		err(1, "mmap");
	memcpy(ram + ENTRY, guest, sizeof guest);
	if (spin)
		memcpy(ram + ENTRY + SPIN, "\xeb\xfe", 2);	/* jmp $ */
	slot.userspace_addr = (unsigned long)ram;
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	state = mmap(NULL, check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"),
		     PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (state == MAP_FAILED)
		err(1, "mmap of the processor");
	if (cpuid)
		set_cpuid(kvm, vcpu);
	enter_protected_mode(vcpu);
	return run(vcpu, state);
}

/* The least that QEMU can start: the same guest in place of the firmware, a
 * 64 KiB ROM below 4 GiB entered in real mode at its last 16 bytes. */
	.code16
	.text
start:
	mov $message, %si
	mov $end - message, %cx
	mov $0x3f8, %dx
1:	lodsb %cs:(%si), %al
	out %al, (%dx)
	loop 1b
#ifdef SPIN
2:	jmp 2b
#endif
	xor %ax, %ax
	mov $0xf4, %dx
	out %ax, (%dx)
3:	hlt
	jmp 3b
message:
	.ascii "hello\n"
end:
	.org 0xfff0
	jmp start
	.org 0x10000

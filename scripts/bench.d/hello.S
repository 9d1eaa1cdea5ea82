/* The guest of scripts/bench: 32-bit protected mode, prints a line on COM1 and
 * ends through port 0xF4; with -DSPIN it then runs for ever. The PVH note is for
 * QEMU; ringfence gets the same as a flat binary. */
	.code32
	.section .note.pvh, "a", @note
	.long 4, 4, 18			/* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long _start
	.text
	.globl _start
_start:
	mov $message, %esi
	mov $end - message, %ecx
	mov $0x3f8, %edx
1:	lodsb
	out %al, (%dx)
	loop 1b
#ifdef SPIN
2:	jmp 2b
#endif
	xor %eax, %eax
	mov $0xf4, %edx
	out %eax, (%dx)
3:	hlt
	jmp 3b
message:
	.ascii "hello\n"
end:

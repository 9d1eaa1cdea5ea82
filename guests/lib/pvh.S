# The Xen note that makes an ELF a PVH image (xen/include/public/elfnote.h): where to enter in
# 32-bit protected mode. The value is as wide as the ELF's addresses, as Linux has it.
    .section .note.Xen, "a", @note
    .balign 4
    .long 4                     # of "Xen"
    .long 2f - 1f
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
#ifdef __x86_64__
1:  .quad _start
#else
1:  .long _start
#endif
2:

    .section .note.GNU-stack, "", @progbits

# The note that tells Linux's own ELF file from any other (include/linux/elfnote.h, build salt).
    .section .note.Linux, "a", @note
    .balign 4
    .long 2f - 1f
    .long 4f - 3f
    .long 0x100                 # LINUX_ELFNOTE_BUILD_SALT
1:  .asciz "Linux"
2:  .balign 4
3:  .asciz "guest"
4:  .balign 4

    .section .note.GNU-stack, "", @progbits

# The multiboot 2 header (specification 2.0, section 3.1): it asks for the command line, the
# modules and the memory map. With ADDRESS_FIELDS it also says where a file that is not ELF goes.
    .set MAGIC, 0xE85250D6
    .set I386, 0

    .section .header, "a"
    .balign 8
header:
    .long MAGIC
    .long I386
    .long header_end - header
    .long -(MAGIC + I386 + (header_end - header))

    .balign 8
1:  .word 1, 0                  # information request
    .long 2f - 1b
    .long 1, 3, 6
2:
#ifdef ADDRESS_FIELDS
    .balign 8
    .word 2, 0                  # addresses
    .long 24
    .long header
    .long load_start
    .long load_end
    .long image_end
    .balign 8
    .word 3, 0                  # entry
    .long 12
    .long _start
#endif
    .balign 8
    .word 0, 0                  # end
    .long 8
header_end:

    .section .note.GNU-stack, "", @progbits

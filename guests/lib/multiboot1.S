# The multiboot 1 header (specification 0.6.96, section 3.1). With ADDRESS_FIELDS it also says
# where a file that is not ELF goes (the "a.out kludge").
    .set MAGIC, 0x1BADB002
    .set ALIGN_MODULES, 1
    .set MEMORY_INFO, 2
#ifdef ADDRESS_FIELDS
    .set FLAGS, ALIGN_MODULES | MEMORY_INFO | 0x10000
#else
    .set FLAGS, ALIGN_MODULES | MEMORY_INFO
#endif

    .section .header, "a"
    .balign 4
header:
    .long MAGIC
    .long FLAGS
    .long -(MAGIC + FLAGS)
#ifdef ADDRESS_FIELDS
    .long header
    .long load_start
    .long load_end
    .long image_end
    .long _start
#endif

    .section .note.GNU-stack, "", @progbits

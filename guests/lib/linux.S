# The setup header of a Linux image, protocol 2.15 (Documentation/arch/x86/boot.rst). On x86-64
# the 64-bit entry is 0x200 into the kernel, and the 32-bit entry ends the guest with code 60.
# The real-mode entry, for boot loaders of old, ends it with code 61.
    .section .header, "ax"
    .code16
header:
    .org 0x1F1
    .byte 1                     # setup_sects, beside the boot sector
    .word 0                     # root_flags
    .long kernel_paragraphs     # syssize
    .word 0                     # ram_size
    .word 0xFFFF                # vid_mode
    .word 0                     # root_dev
    .word 0xAA55                # boot_flag
    .byte 0xEB, setup - 1f      # jump: a short one; its length says where the header ends
1:  .ascii "HdrS"
    .word 0x020F                # version
    .long 0                     # realmode_swtch
    .word 0                     # start_sys_seg
    .word version - 0x200 - header # kernel_version
    .byte 0                     # type_of_loader
    .byte 1                     # loadflags: LOADED_HIGH
    .word 0                     # setup_move_size
    .long 0x100000              # code32_start
    .long 0, 0                  # ramdisk_image, ramdisk_size
    .long 0                     # bootsect_kludge
    .word 0                     # heap_end_ptr
    .byte 0, 0                  # ext_loader_ver, ext_loader_type
    .long 0                     # cmd_line_ptr
    .long 0x7FFFFFFF            # initrd_addr_max
    .long 0x1000                # kernel_alignment
    .byte 0                     # relocatable_kernel
    .byte 12                    # min_alignment
#ifdef __x86_64__
    .word 1                     # xloadflags: XLF_KERNEL_64
#else
    .word 0
#endif
    .long 2047                  # cmdline_size
    .long 0                     # hardware_subarch
    .quad 0                     # hardware_subarch_data
    .long 0, 0                  # payload_offset, payload_length
    .quad 0                     # setup_data
    .quad 0x100000              # pref_address
    .long kernel_memory         # init_size
    .long 0                     # handover_offset
    .long 0                     # kernel_info_offset
setup:
    movl $61, %eax
    outl %eax, $0xF4
1:  hlt
    jmp 1b
version:
    .asciz "ringfence guest"
    .org 0x400

#ifdef __x86_64__
    .section .start, "ax"
    .code32
    .globl _start
_start:
    movl $60, %eax
    outl %eax, $0xF4
1:  hlt
    jmp 1b
    .org 0x200                  # start64 follows
#endif

    .section .note.GNU-stack, "", @progbits

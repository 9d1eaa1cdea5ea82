# From protected mode without paging (multiboot, PVH) to long mode: an identity map of the low
# 4 GiB in 2 MiB pages, then start64. EAX and EBX arrive there as EAX and RDI.
    .set PRESENT_WRITABLE, 0x03
    .set LARGE_PAGE, 0x80

    .section .start, "ax"
    .code32
    .globl _start
_start:
    cli
    cld
    movl %eax, %ebp
    movl $pdpt + PRESENT_WRITABLE, pml4
    movl $pdpt, %edi
    movl $directories + PRESENT_WRITABLE, %eax
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $4096, %eax
    cmpl $pdpt + 4 * 8, %edi
    jne 1b
    movl $directories, %edi
    movl $PRESENT_WRITABLE | LARGE_PAGE, %eax
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 1b                      # until 4 GiB

    movl %cr4, %eax
    orl $0x20, %eax             # PAE
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax       # PG
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $1f
    .code64
1:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %ebp, %eax
    movl %ebx, %edi
    jmp start64

    .balign 8
gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF    # 64-bit code
    .quad 0x00CF93000000FFFF    # data
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .section .bss
    .balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
directories:
    .skip 4 * 4096

    .section .note.GNU-stack, "", @progbits

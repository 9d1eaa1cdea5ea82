# The way of a processor from its SIPI (0800:0000, real mode) straight to long mode, with the
# page tables and the GDT of the first processor.
    .section .rodata.smp, "a"
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer - trampoline
    movl %cr4, %eax
    orl $0x20, %eax             # PAE
    movl %eax, %cr4
    movl first_cr3 - trampoline, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx      # EFER
    rdmsr
    orl $0x100, %eax            # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       # PG and PE at once
    movl %eax, %cr0
    ljmpl $0x08, $in_long_mode
    .balign 8
first_cr3:
    .long pml4
gdt_pointer:
    .word 23
    .long gdt
trampoline_end:

    .text
    .code64
in_long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %edi
    lock xaddl %edi, next_index(%rip)
    incl %edi
    movl %edi, %eax
    shll $12, %eax
    leaq stacks(%rip), %rsp
    addq %rax, %rsp             # processor 1 has the 4 KiB below stacks + 4096
    call processor

    .section .bss
    .balign 16
next_index:
    .skip 16
stacks:
    .skip 16 * 4096

    .section .note.GNU-stack, "", @progbits

# The 48 gates of the IDT: exceptions 0-31 and 16 interrupts. Each pushes what the processor did
# not, so that C sees one `struct trap`.
    .set WITH_ERROR_CODE, 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21

    .text
    .globl trap_gates
    .balign 16
trap_gates:
    .set vector, 0
    .rept 48
    .balign 16
    .ifeq (WITH_ERROR_CODE >> vector) & 1
    pushq $0
    .endif
    pushq $vector
    jmp enter
    .set vector, vector + 1
    .endr

enter:
    .irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\register
    .endr
    cld
    movq %rsp, %rdi
    call trap
    .irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
    popq %\register
    .endr
    addq $16, %rsp
    iretq

# load_tables(gdt pointer, idt pointer)
    .globl load_tables
load_tables:
    lgdt (%rdi)
    lidt (%rsi)
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x28, %eax
    ltr %ax
    popq %rax
    pushq $0x08
    pushq %rax
    lretq

    .section .note.GNU-stack, "", @progbits

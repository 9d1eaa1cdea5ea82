# Start-up in long mode. The information block is in RDI, except for the Linux
# boot protocol (INFO=rsi). enter64.S comes here from protected mode.
#ifndef INFO
#define INFO rdi
#endif
    .section .start64, "ax"
    .code64
    .globl start64
    .weak _start                # enter64.S has its own
_start:
start64:
    cli
    cld
    movq $stack_top, %rsp
    movq %INFO, %rsi
    movl %eax, %edi
    xorl %ebp, %ebp
    call guest
    movl $0xF4, %edx
    outl %eax, %dx
1:  hlt
    jmp 1b

    .section .bss
    .balign 16
    .skip 16384
stack_top:

    .section .note.GNU-stack, "", @progbits

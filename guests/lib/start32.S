# Start-up in flat protected mode. The information block is in EBX, except for
# the Linux boot protocol (INFO=esi); EAX is multiboot's magic number.
#ifndef INFO
#define INFO ebx
#endif
    .section .start, "ax"
    .code32
    .globl _start
_start:
    cli
    cld
    movl $stack_top, %esp
    pushl %INFO
    pushl %eax
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

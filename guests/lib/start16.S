# Start-up in real mode: flat segments from 0, the stack below the code.
    .section .start, "ax"
    .code16
    .globl _start
_start:
    cli
    cld
    ljmp $0, $1f                # some firmwares enter at 07C0:0000
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $_start, %esp
    pushl $0                    # info
    pushl $0                    # magic
    calll guest                 # gcc -m16 makes 32-bit calls
    movl $0xF4, %edx
    outl %eax, %dx
1:  hlt
    jmp 1b

    .section .note.GNU-stack, "", @progbits

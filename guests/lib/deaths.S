# The instructions that kill (deaths.c), each in a function of its own.
    .macro function name
    .globl \name
    .type \name, @function
    .balign 16
\name:
    .cfi_startproc
    .endm
    .macro end name
    .cfi_endproc
    .size \name, . - \name
    .endm

    .cfi_sections .debug_frame
    .text
function call_null
    xorl %eax, %eax
    call *%rax
    ret
end call_null

function overflow_stack
    leaq small_stack_top(%rip), %rsp
1:  pushq %rax
    jmp 1b
end overflow_stack

function load_cr3
    movq %rdi, %cr3
    nop
    ret
end load_cr3

function jump_nowhere
    movabsq $0x0123456789abcdef, %rax
    jmp *%rax
end jump_nowhere

function divide_by_zero
    xorl %ecx, %ecx
    movl $1, %eax
    cltd
    idivl %ecx
    ret
end divide_by_zero

function write_unmapped
    movabsq $0xffff800000123000, %rax
    movl $1, (%rax)
    ret
end write_unmapped

function faulting_handler
    movabsq $0xffff800000456000, %rax
    movl (%rax), %eax
    iretq
end faulting_handler

function looping_handler
    pushq %rax
    call loop_on
    popq %rax
    iretq
end looping_handler

function loop_on
    sti
1:  jmp 1b
end loop_on

function write_on_small_stack
    leaq small_stack_top(%rip), %rsp
    jmp write_unmapped
end write_on_small_stack

function call_data
    call *%rdi
    ret
end call_data

function load_bad_segment
    movl $0x48, %eax
    movl %eax, %ds
    ret
end load_bad_segment

function undefined
    ud2
    ret
end undefined

function read_reserved
    movabsq $0x8000001000, %rax
    movl (%rax), %eax
    ret
end read_reserved

function dead_loop
    cli
1:  jmp 1b
end dead_loop

function report_panic
    movl $0x505, %edx
    movb $1, %al
    outb %al, %dx               # the last: where RIP stands then is no function's
end report_panic

function await_interrupt
    sti
1:  jmp 1b
end await_interrupt

function halt_for_ever
    cli
    hlt
end halt_for_ever

    .section .bss
    .globl small_stack
    .balign 4096
small_stack:
    .skip 8192
small_stack_top:

    .section .note.GNU-stack, "", @progbits

# The instructions that rings.c tries in ring 3, each followed by ud2, and the way there and back.
    .macro attempt table, name, instruction:vararg
    .pushsection .rodata.names, "a"
771: .asciz "\name"
    .popsection
    .pushsection .rodata.\table, "a"
    .quad 771b, 772f, 773f
    .popsection
772: \instruction
773: ud2
    .endm

    .section .rodata.privileged, "a"
    .globl privileged
privileged:
    .section .rodata.sensitive, "a"
    .globl sensitive
sensitive:

    .text
    attempt privileged, "cli", cli
    attempt privileged, "sti", sti
    attempt privileged, "hlt", hlt
    attempt privileged, "in", inb $0x80, %al
    attempt privileged, "out", outb %al, $0x80
    attempt privileged, "insb", insb
    attempt privileged, "outsb", outsb
    attempt privileged, "lgdt", lgdt scratch(%rip)
    attempt privileged, "lidt", lidt scratch(%rip)
    attempt privileged, "lldt", lldt %ax
    attempt privileged, "ltr", ltr %ax
    attempt privileged, "lmsw", lmsw %ax
    attempt privileged, "clts", clts
    attempt privileged, "mov from cr0", movq %cr0, %rax
    attempt privileged, "mov to cr3", movq %rax, %cr3
    attempt privileged, "mov to dr7", movq %rax, %db7
    attempt privileged, "rdmsr", rdmsr
    attempt privileged, "wrmsr", wrmsr
    attempt privileged, "invlpg", invlpg scratch(%rip)
    attempt privileged, "invd", invd
    attempt privileged, "wbinvd", wbinvd

    attempt sensitive, "sgdt", sgdt scratch(%rip)
    attempt sensitive, "sidt", sidt scratch(%rip)
    attempt sensitive, "sldt", sldt %ax
    attempt sensitive, "str", str %ax
    attempt sensitive, "smsw", smsw %ax
    attempt sensitive, "pushf", pushfq
    attempt sensitive, "popf", popfq
    attempt sensitive, "cpuid", cpuid
    attempt sensitive, "rdtsc", rdtsc

    .section .rodata.privileged, "a"
    .globl privileged_end
privileged_end:
    .section .rodata.sensitive, "a"
    .globl sensitive_end
sensitive_end:

    .text
    .globl visit_ring3, back_in_ring0
visit_ring3:
    .irp register, rbx, rbp, r12, r13, r14, r15
    pushq %\register
    .endr
    movq %rsp, ring0_stack(%rip)
    pushq $0x18 | 3             # USER_DATA
    leaq ring3_stack(%rip), %rax
    pushq %rax
    pushq $2                    # RFLAGS: interrupts off, I/O privilege level 0
    pushq $0x20 | 3             # USER_CODE
    pushq %rdi
    xorl %eax, %eax
    movl $0x80, %edx            # a port, for ins and outs
    leaq scratch(%rip), %rdi
    movq %rdi, %rsi
    movl $0x10, %ecx            # an MSR
    iretq
back_in_ring0:
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    ret

    .section .bss
    .globl ring0_stack
    .balign 16
ring0_stack:
    .skip 8
scratch:
    .skip 24
    .skip 1024
ring3_stack:
    .skip 8                     # what popf takes
    .skip 24

    .section .note.GNU-stack, "", @progbits

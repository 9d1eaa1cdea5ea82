# From real mode through protected to long mode, at an address that real mode reaches. Every
# processor goes the whole way: the first from the loader, the others from a SIPI to the first
# page. An ELF loader that enters in long mode comes to long_entry instead.
    .set OPEN, 7                # present, writable, user
    .set LARGE, 0x80

# The low 2 MiB and the local APIC at their own addresses, and all again at -2 GiB.
    .macro make_tables
    movl $pdpt + OPEN, pml4
    movl $pdpt + OPEN, pml4 + 511 * 8
    movl $directory + OPEN, pdpt
    movl $directory + OPEN, pdpt + 510 * 8
    movl $apic_directory + OPEN, pdpt + 3 * 8
    movl $LARGE | OPEN, directory
    movl $0xFEE00000 | LARGE | OPEN, apic_directory + 503 * 8
    .endm

    .section .start, "ax"
    .code16
    .globl _start, real_mode, protected_mode, long_mode, long_entry
_start:
    cli
    cld
    ljmp $0, $real_mode
real_mode:
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax                # PE
    movl %eax, %cr0
    ljmpl $0x18, $protected_mode

    .code32
protected_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    make_tables
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
    xorl %edi, %edi             # no information block
    ljmp $0x08, $long_mode

    .code64
long_entry:
    make_tables
    movl $pml4, %eax
    movq %rax, %cr3
    lgdt gdt_pointer
long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %eax
    lock xaddl %eax, next_index
    movl %eax, %ecx
    shll $12, %ecx
    leaq stacks + 4096(%rcx), %rsp
    xorl %ebp, %ebp
    testl %eax, %eax
    jnz 1f
    movq %rdi, %rsi
    call guest
    movl $0xF4, %edx            # the debug exit
    outl %eax, %dx
1:  movl %eax, %edi
    call processor

    .balign 8
walk_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF    # 0x08: 64-bit code
    .quad 0x00CF93000000FFFF    # 0x10: data
    .quad 0x00CF9B000000FFFF    # 0x18: 32-bit code
gdt_pointer:
    .word . - walk_gdt - 1
    .quad walk_gdt

# Places for a debugger: instructions whose addresses and effects do not depend on a compiler.
    .text
    .globl three_steps, user_part, user_end
    .type three_steps, @function
three_steps:
    movl $1, %eax
    addl $2, %eax
    nop
    ret
    .size three_steps, . - three_steps
    .type user_part, @function
user_part:                      # in ring 3
    movl $7, %eax
    nop
user_end:
    ud2
    .size user_part, . - user_part

    .section .bss
    .balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
directory:
    .skip 4096
apic_directory:
    .skip 4096
stacks:
    .skip 16 * 4096
next_index:
    .skip 4

    .section .note.GNU-stack, "", @progbits

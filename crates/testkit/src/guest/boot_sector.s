# The smallest guest: writes a pass counter to each page of a range, for ever, and prints it.
#
# Assembled by hand into boot_sector.rs, so that no binutils are needed to run a test:
#   as --32 boot_sector.s -o x.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary x.o -o x.bin
# A test in boot_sector.rs does the same and compares.

        .code16
        .globl  _start
_start:
        jmp     begin
        .org    4
# Parameters, patched by the host.
first_page:     .long 0
page_count:     .long 0
spin:           .long 0         # empty loops after each page
print_mask:     .long 0         # printed when counter & mask == 0

begin:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        inb     $0x92, %al      # fast A20 gate
        orb     $2, %al
        outb    %al, $0x92
        lgdtl   gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al         # protected mode
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movl    $0x7c00, %esp
        xorl    %ebp, %ebp      # the counter
pass:
        incl    %ebp
        movl    first_page, %edi
        shll    $12, %edi
        movl    page_count, %ecx
page:
        movl    %ebp, (%edi)
        movl    spin, %eax
wait:
        testl   %eax, %eax
        jz      next
        decl    %eax
        jmp     wait
next:
        addl    $4096, %edi
        decl    %ecx
        jnz     page
        testl   %ebp, print_mask
        jnz     pass

        movl    %ebp, %ebx
        movl    $8, %ecx
digit:
        roll    $4, %ebx
        movl    %ebx, %eax
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     decimal
        addb    $('a' - '9' - 1), %al
decimal:
        call    print
        decl    %ecx
        jnz     digit
        movb    $10, %al
        call    print
        jmp     pass

# Writes %al to the first serial port once it has room.
print:
        movb    %al, %ah
        movw    $0x3fd, %dx
room:
        inb     %dx, %al
        testb   $0x20, %al
        jz      room
        movb    %ah, %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        ret

        .align  8
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff      # code, flat
        .quad   0x00cf92000000ffff      # data, flat
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .org    510
        .word   0xaa55

#include "textflag.h"

// ARG loads argument i of the call at R12. Bit i of R13 says that the field
// holds the address of the value instead of the value.
#define ARG(i, off, reg) \
	MOVQ off(R12), reg; \
	BTQ $i, R13; \
	JCC 2(PC); \
	MOVQ (reg), reg

// func stub()
//
// It is never called: its bytes are copied into an executable of their own,
// where this is the entry point. So it may refer to no symbol.
TEXT ·stub(SB), NOSPLIT|NOFRAME, $0
	MOVQ SP, R15

	// mmap(base, maxProgram, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED, 3, 0)
	MOVQ $9, AX
	MOVQ $0x200000000, DI
	MOVQ $0x100000, SI
	MOVQ $3, DX
	MOVQ $0x12, R10
	MOVQ $3, R8
	XORQ R9, R9
	SYSCALL
	MOVQ $0x200000000, BX
	CMPQ AX, BX
	JNE  quit

	// The kernel left argc, argv and the environment on the stack.
	MOVQ 0(R15), CX
	LEAQ 8(R15), DX
	MOVQ DX, 0(BX)
	LEAQ 8(DX)(CX*8), DX
	MOVQ DX, 8(BX)
	LEAQ 64(BX), R12

loop:
	MOVQ 56(R12), R13
	ARG(0, 8, DI)
	ARG(1, 16, SI)
	ARG(2, 24, DX)
	ARG(3, 32, R10)
	ARG(4, 40, R8)
	ARG(5, 48, R9)
	MOVQ 0(R12), AX
	SYSCALL
	MOVQ AX, 80(R12)
	CMPQ AX, $-4095
	JCC  failed
	ADDQ $96, R12
	JMP  loop

failed:
	NEGQ  AX
	MOVQ  64(R12), CX
	TESTQ CX, CX
	JEQ   fatal
	MOVQ  72(R12), DX
	TESTQ DX, DX
	JEQ   jump
	CMPQ  DX, AX
	JNE   fatal

jump:
	MOVQ CX, R12
	JMP  loop

fatal:
	MOVQ R12, 16(BX)
	MOVQ AX, 24(BX)
	MOVQ $1, AX
	MOVQ $4, DI
	LEAQ 16(BX), SI
	MOVQ $16, DX
	SYSCALL

quit:
	MOVQ $231, AX
	MOVQ $127, DI
	SYSCALL
	JMP  quit

	// The mark that ends the copy.
	BYTE $0xF4; BYTE $0xF4; BYTE $0xF4; BYTE $0xF4
	BYTE $0xF4; BYTE $0xF4; BYTE $0xF4; BYTE $0xF4

// func stubAddr() uintptr
TEXT ·stubAddr(SB), NOSPLIT, $0-8
	LEAQ ·stub(SB), AX
	MOVQ AX, ret+0(FP)
	RET

#include "textflag.h"

// ARG loads argument i of the call at R19. Bit i of R20 says that the field
// holds the address of the value instead of the value.
#define ARG(i, off, reg) \
	MOVD off(R19), reg; \
	TBZ $i, R20, 2(PC); \
	MOVD (reg), reg

// func stub()
//
// It is never called: its bytes are copied into an executable of their own,
// where this is the entry point. So it may refer to no symbol.
TEXT ·stub(SB), NOSPLIT|NOFRAME, $0
	MOVD RSP, R21

	// mmap(base, maxProgram, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED, 3, 0)
	MOVD $222, R8
	MOVD $0x200000000, R0
	MOVD $0x100000, R1
	MOVD $3, R2
	MOVD $0x12, R3
	MOVD $3, R4
	MOVD $0, R5
	SVC
	MOVD $0x200000000, R22
	CMP  R0, R22
	BNE  quit

	// The kernel left argc, argv and the environment on the stack.
	MOVD 0(R21), R1
	ADD  $8, R21, R2
	MOVD R2, 0(R22)
	ADD  R1<<3, R2, R2
	ADD  $8, R2, R2
	MOVD R2, 8(R22)
	ADD  $64, R22, R19

loop:
	MOVD 56(R19), R20
	ARG(0, 8, R0)
	ARG(1, 16, R1)
	ARG(2, 24, R2)
	ARG(3, 32, R3)
	ARG(4, 40, R4)
	ARG(5, 48, R5)
	MOVD 0(R19), R8
	SVC
	MOVD R0, 80(R19)
	CMN  $4095, R0
	BHS  failed
	ADD  $96, R19, R19
	B    loop

failed:
	NEG R0, R0
	MOVD 64(R19), R1
	CBZ R1, fatal
	MOVD 72(R19), R2
	CBZ R2, jump
	CMP R0, R2
	BNE fatal

jump:
	MOVD R1, R19
	B    loop

fatal:
	MOVD R19, 16(R22)
	MOVD R0, 24(R22)
	MOVD $64, R8
	MOVD $4, R0
	ADD  $16, R22, R1
	MOVD $16, R2
	SVC

quit:
	MOVD $94, R8
	MOVD $127, R0
	SVC
	B    quit

	// The mark that ends the copy.
	WORD $0xF4F4F4F4
	WORD $0xF4F4F4F4

// func stubAddr() uintptr
TEXT ·stubAddr(SB), NOSPLIT, $0-8
	MOVD $·stub(SB), R0
	MOVD R0, ret+0(FP)
	RET

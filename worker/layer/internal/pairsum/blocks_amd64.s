#include "textflag.h"

// The sums a and b are in X1, X2 and X3, X4, each as the instructions want it: A, B,
// E, F in one register and C, D, G, H in the other. X5 to X8 are sixteen words of the
// message, X0 is what a round adds, of both sums.

// rounds makes four rounds with the words of m.
#define rounds(i, m) \
	MOVOU		(16*i)(AX), X0 \
	PADDD		m, X0 \
	SHA256RNDS2	X0, X1, X2 \
	SHA256RNDS2	X0, X3, X4 \
	PSHUFD		$0x0e, X0, X0 \
	SHA256RNDS2	X0, X2, X1 \
	SHA256RNDS2	X0, X4, X3

// load reads four words of the message and makes their rounds.
#define load(i, m) \
	MOVOU	(16*i)(SI), m \
	PSHUFB	X10, m \
	rounds(i, m)

// expand makes m0, the words sixteen rounds ago, the next ones, and their rounds.
#define expand(i, m0, m1, m2, m3) \
	SHA256MSG1	m1, m0 \
	MOVO		m3, X9 \
	PALIGNR		$4, m2, X9 \
	PADDD		X9, m0 \
	SHA256MSG2	m3, m0 \
	rounds(i, m0)

// enter and leave turn eight words in their order into the form of a sum, and back.
#define enter(p, x, y) \
	MOVOU	(p), x \
	MOVOU	16(p), y \
	PSHUFD	$0xb1, x, x \
	PSHUFD	$0x1b, y, y \
	MOVO	x, X9 \
	PALIGNR	$8, y, x \
	PBLENDW	$0xf0, X9, y

#define leave(p, x, y) \
	PSHUFD	$0x1b, x, x \
	PSHUFD	$0xb1, y, y \
	MOVO	x, X9 \
	PBLENDW	$0xf0, y, x \
	PALIGNR	$8, X9, y \
	MOVOU	x, (p) \
	MOVOU	y, 16(p)

// func bothBlocks(a, b *[8]uint32, p *byte, n int)
TEXT ·bothBlocks(SB), NOSPLIT, $0-32
	MOVQ	a+0(FP), R8
	MOVQ	b+8(FP), R9
	MOVQ	p+16(FP), SI
	MOVQ	n+24(FP), CX
	LEAQ	constants<>(SB), AX
	MOVOU	bigEndian<>(SB), X10
	enter(R8, X1, X2)
	enter(R9, X3, X4)

block:
	CMPQ	CX, $64
	JLT	done
	MOVO	X1, X11
	MOVO	X2, X12
	MOVO	X3, X13
	MOVO	X4, X14
	load(0, X5)
	load(1, X6)
	load(2, X7)
	load(3, X8)
	expand(4, X5, X6, X7, X8)
	expand(5, X6, X7, X8, X5)
	expand(6, X7, X8, X5, X6)
	expand(7, X8, X5, X6, X7)
	expand(8, X5, X6, X7, X8)
	expand(9, X6, X7, X8, X5)
	expand(10, X7, X8, X5, X6)
	expand(11, X8, X5, X6, X7)
	expand(12, X5, X6, X7, X8)
	expand(13, X6, X7, X8, X5)
	expand(14, X7, X8, X5, X6)
	expand(15, X8, X5, X6, X7)
	PADDD	X11, X1
	PADDD	X12, X2
	PADDD	X13, X3
	PADDD	X14, X4
	ADDQ	$64, SI
	SUBQ	$64, CX
	JMP	block

done:
	leave(R8, X1, X2)
	leave(R9, X3, X4)
	RET

// func features() uint32
TEXT ·features(SB), NOSPLIT, $0-4
	MOVL	$0, ret+0(FP)
	XORL	AX, AX
	CPUID
	CMPL	AX, $7
	JLT	none
	MOVL	$7, AX
	XORL	CX, CX
	CPUID
	MOVL	BX, ret+0(FP)

none:
	RET

DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $16

// The constants of FIPS 180-4.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256

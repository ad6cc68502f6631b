package pairsum

import "golang.org/x/sys/cpu"

// supported reports whether the processor has instructions for sha256: bit 29 of
// what it says of its extended features, which package cpu leaves out.
var supported = cpu.X86.HasSSSE3 && cpu.X86.HasSSE41 && features()>>29&1 == 1

// blocks adds p, whole blocks, to two sums.
func blocks(a, b *[8]uint32, p []byte) {
	if len(p) > 0 {
		bothBlocks(a, b, &p[0], len(p))
	}
}

// features gives the register EBX of CPUID's leaf 7, and 0 where there is none.
func features() uint32

//go:noescape
func bothBlocks(a, b *[8]uint32, p *byte, n int)

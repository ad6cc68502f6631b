#!/bin/sh
# Writes the tables of system calls from golang.org/x/sys and, for x32, which it
# does not know, from the kernel's header (Debian package linux-libc-dev).
set -eu
dir=$(go list -m -f '{{.Dir}}' golang.org/x/sys)/unix
table() {
	sed -nE 's/^\tSYS_(\w+) += ([0-9]+)$/\1 \2/p' "$dir/zsysnum_linux_$1.go" |
		tr 'A-Z' 'a-z' | grep -v '^syscall_mask '
}
table amd64 >syscalls_x86_64.txt
table 386 >syscalls_x86.txt
table arm64 >syscalls_aarch64.txt
# The calls that arm has for itself, and a name that it shares with others.
{
	table arm
	printf '%s\n' 'sync_file_range2 341' 'breakpoint 983041' 'cacheflush 983042' 'set_tls 983045'
} | sort -s -n -k2,2 >syscalls_arm.txt
# Calls newer than the header have the same numbers as those of x86_64.
header=/usr/include/x86_64-linux-gnu/asm/unistd_x32.h
last=$(sed -nE 's/^#define __NR_\w+ \(__X32_SYSCALL_BIT \+ ([0-9]+)\)$/\1/p' "$header" | awk '$1 < 512' | sort -n | tail -1)
{
	sed -nE 's/^#define __NR_(\w+) \(__X32_SYSCALL_BIT \+ ([0-9]+)\)$/\1 \2/p' "$header"
	awk -v last="$last" '$2 > last' syscalls_x86_64.txt
} | sort -s -n -k2,2 >syscalls_x32.txt

package main

import "golang.org/x/sys/unix"

// archCalls are calls that newer architectures do not have.
var archCalls = []call{
	{"iopl", unix.SYS_IOPL, [6]uintptr{3}},
	{"ioperm", unix.SYS_IOPERM, [6]uintptr{0, 1, 1}},
	{"nfsservctl", 180, [6]uintptr{}},
	{"_sysctl", 156, [6]uintptr{}},
	{"uselib", 134, [6]uintptr{}},
	{"ustat", 136, [6]uintptr{}},
	{"sysfs", 139, [6]uintptr{1}},
	{"create_module", 174, [6]uintptr{}},
	{"modify_ldt", unix.SYS_MODIFY_LDT, [6]uintptr{0, 0, 0}},
}

package seccomp

// allow all
func Default() ([]byte, error) { return []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}, nil }

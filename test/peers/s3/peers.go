//go:build peers

// Package peers pins the S3 server that kiln is tested against, apart from the
// other peers, whose dependencies are others.
package peers

import _ "github.com/versity/versitygw/cmd/versitygw"

//go:build !unix

package agent

// openFiles returns how many files and sockets this process may open, or 0 if that
// cannot be told.
func openFiles() uint64 { return 0 }

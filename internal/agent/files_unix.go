//go:build unix

package agent

import "syscall"

// openFiles returns how many files and sockets this process may open, or 0 if that
// cannot be told. The Go runtime has raised the limit as far as it may.
func openFiles() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return uint64(l.Cur) //nolint:unconvert // signed on some systems
}

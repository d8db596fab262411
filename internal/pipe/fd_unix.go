//go:build unix

package pipe

import (
	"io"
	"syscall"
)

// canReadFD says that sockets can be read and written through their descriptors.
const canReadFD = true

// readFD reads once from a non-blocking socket. again means that nothing has
// arrived; a read of nothing is the end, given as an error.
func readFD(fd uintptr, b []byte) (n int, again bool, err error) {
	for {
		n, err = syscall.Read(int(fd), b)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0, true, nil
		case err != nil:
			return 0, false, err
		case n == 0:
			return 0, false, io.EOF
		}
		return n, false, nil
	}
}

// writeFD writes once to a non-blocking socket and tells how much it took.
func writeFD(fd uintptr, b []byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), b)
		if err == syscall.EINTR {
			continue
		}
		return max(n, 0), err
	}
}

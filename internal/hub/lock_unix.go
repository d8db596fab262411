//go:build unix

package hub

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockDir locks a directory for this process until the file is closed or the
// process ends, however it ends. It leaves nothing in the directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fileError(dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, stateError(ErrStateLocked, dir, "it is locked")
		}
		return nil, fileError(dir, err)
	}
	return f, nil
}

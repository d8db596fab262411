//go:build unix

package issuer

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockDir waits until no other process changes a directory, and keeps others from it
// until unlock is called or this process ends. It leaves nothing in the directory.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

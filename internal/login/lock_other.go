//go:build !unix

package login

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// staleLock is the age at which a lock is one that was left behind.
const staleLock = 2 * time.Minute

// lock locks a directory until unlock is called; unlock is nil if another process
// has it.
func lock(dir string) (unlock func(), err error) {
	name := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if info, err := os.Stat(name); err == nil && time.Since(info.ModTime()) > staleLock {
			_ = os.Remove(name)
		}
		return nil, nil //nolint:nilnil // somebody else has it
	}
	if err != nil {
		return nil, err
	}
	f.Close()
	return func() { _ = os.Remove(name) }, nil
}

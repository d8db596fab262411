// Package login signs a person in at a hub from a command line, and keeps what
// that gave: contexts, which are hubs with the organization to work in, in one file,
// and the tokens that belong to them in another that nobody else may read. Sessions
// are renewed silently while the identity provider lets them.
package login

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"postern.dev/postern/internal/wholefile"
	"postern.dev/postern/internal/wire"
)

// The files in a Store's directory.
const (
	contextsFile = "config.yaml"
	tokensFile   = "tokens.json"
	lockFile     = "lock"

	maxStoreFile = 1 << 20 // bytes
)

// Store is the directory where contexts and tokens are kept. Its methods are safe
// for concurrent use, also by several processes.
type Store struct{ dir string }

// Open returns the store of this user: the directory POSTERN_CONFIG_DIR, or else
// postern in XDG_CONFIG_HOME or in ~/.config. It does not have to exist.
func Open(getenv func(string) string) (*Store, error) {
	if dir := getenv("POSTERN_CONFIG_DIR"); dir != "" {
		return &Store{dir}, nil
	}
	base := getenv("XDG_CONFIG_HOME")
	if base == "" && runtime.GOOS == "windows" {
		base = getenv("APPDATA")
	}
	if home := getenv("HOME"); base == "" && home != "" {
		base = filepath.Join(home, ".config")
	}
	if !filepath.IsAbs(base) { // as the XDG specification wants it
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "it is not known where contexts are kept: HOME is not set").
			WithHint("set POSTERN_CONFIG_DIR to a directory")
	}
	return &Store{filepath.Join(base, "postern")}, nil
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// read returns a file's content, or nil if there is none. A private file that
// others may read is made private.
func (s *Store) read(name string, private bool) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, storeFailure(path, err)
	}
	if info.Size() > maxStoreFile || !info.Mode().IsRegular() {
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s is no file of ours: it has %d bytes", path, info.Size())
	}
	if private && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s can be read by others, and its mode cannot be changed", path).WithCause(err).
				WithHint("make it private with chmod 600, and sign in again: whoever could read it may have the tokens")
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, storeFailure(path, err)
	}
	return b, nil
}

// write puts a private file in place, whole or not at all.
func (s *Store) write(name string, b []byte) error {
	path := filepath.Join(s.dir, name)
	if err := wholefile.Replace(path, b, 0o600); err != nil {
		return storeFailure(path, err)
	}
	return nil
}

func storeFailure(path string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s: %s", path, err).WithCause(err)
}

// badFile says that a file of the store cannot be read.
func (s *Store) badFile(name string, err error) error {
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s: %s", filepath.Join(s.dir, name), err).WithCause(err).
		WithHint("mend it, or delete it and sign in again: postern login HUB")
}

// makeDir makes the store's directory.
func (s *Store) makeDir() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return storeFailure(s.dir, err)
	}
	return nil
}

// ended is the failure for a session that cannot be renewed.
func ended(context, format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "you are not signed in: %s", fmt.Sprintf(format, args...)).
		WithHint("sign in with: postern login --context %s", context)
}

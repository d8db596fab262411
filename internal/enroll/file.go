package enroll

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"postern.dev/postern/internal/secretfile"
)

// maxSecretFile bounds a file with a secret, in bytes.
const maxSecretFile = 16 << 10

// readFile reads the file of a secret, and returns what the file is. One that is too
// long is told by its length alone: see tooLong.
func readFile(name string) (b []byte, info fs.FileInfo, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	b, err = io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	return b, info, err
}

// tooLong returns an error if readFile did not read a file to its end.
func tooLong(b []byte) error {
	if len(b) > maxSecretFile {
		return fmt.Errorf("it is longer than %d bytes", maxSecretFile)
	}
	return nil
}

// source is a file whose secret, a T, may become another while the program runs. It is
// safe for concurrent use.
type source[T any] struct {
	mu     sync.Mutex
	warned bool
	kept   *T          // from a pipe, which can be read only once
	shown  *T          // the one that was given last
	seen   fs.FileInfo // of the file when it held the one that was given last
}

// get returns the secret of the moment, and calls warn once if others may read the file.
func (s *source[T]) get(read func() (T, fs.FileInfo, error), warn func()) (T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept != nil {
		return *s.kept, nil
	}
	secret, info, err := read()
	if err != nil {
		return secret, err
	}
	if !info.Mode().IsRegular() {
		s.kept = &secret
	}
	if secretfile.Exposed(info) && !s.warned {
		s.warned = true
		warn()
	}
	s.shown = &secret
	return secret, nil
}

// changed reports whether get would give another secret than it did last. It is cheap
// while the file stays as it is. A file that is missing or holds no secret has not
// changed: it is being replaced.
func (s *source[T]) changed(name string, read func() (T, fs.FileInfo, error), same func(a, b T) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" || s.kept != nil || s.shown == nil {
		return false
	}
	info, err := os.Stat(name)
	if err != nil || s.seen != nil && os.SameFile(info, s.seen) && info.ModTime().Equal(s.seen.ModTime()) && info.Size() == s.seen.Size() {
		return false
	}
	secret, _, err := read()
	if err != nil {
		return false
	}
	if same(secret, *s.shown) {
		s.seen = info
		return false
	}
	return true
}

// provided reports whether a machine puts a file there: one that is a symbolic link, as
// those of a Secret's volume in a pod are, is not somebody's at a shell.
func provided(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

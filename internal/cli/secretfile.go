package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// secretFile is a file that appears whole, readable by its owner only, or not at
// all.
type secretFile struct {
	path    string
	replace bool
	tmp     *os.File // beside path; nil when path is written directly
	direct  *os.File // a pipe or a device
}

// newSecretFile prepares a file at path. Unless replace is set, an existing one
// is an error, at the latest when the file is committed.
func newSecretFile(path string, replace bool) (*secretFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if info.IsDir() {
			return nil, fmt.Errorf("write secret: %s is a directory", path)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("write secret: %w", err)
		}
		return &secretFile{path: path, direct: f}, nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".postern-token-*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("write secret: %w", err)
	}
	return &secretFile{path: path, replace: replace, tmp: tmp}, nil
}

// commit writes v as JSON and puts the file into its place.
func (s *secretFile) commit(v any) error {
	return s.commitWith(func(f *os.File) error {
		enc := json.NewEncoder(f)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	})
}

// commitText writes text and puts the file into its place.
func (s *secretFile) commitText(text string) error {
	return s.commitWith(func(f *os.File) error { _, err := f.WriteString(text); return err })
}

func (s *secretFile) commitWith(write func(*os.File) error) error {
	f := s.tmp
	if s.direct != nil {
		f = s.direct
	}
	if err := write(f); err != nil {
		return fmt.Errorf("write secret: %w", err)
	}
	if s.direct != nil {
		return nil
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write secret: %w", err)
	}
	var err error
	if s.replace {
		err = os.Rename(f.Name(), s.path)
	} else {
		err = os.Link(f.Name(), s.path) // fails if somebody made the file meanwhile
		if err != nil && !errors.Is(err, fs.ErrExist) && !regularFileExists(s.path) {
			err = os.Rename(f.Name(), s.path) // a file system without hard links
		}
	}
	if err != nil {
		return fmt.Errorf("write secret: %w", err)
	}
	return nil
}

// discard closes the file and removes what is not in its place.
func (s *secretFile) discard() {
	if s.direct != nil {
		_ = s.direct.Close()
		return
	}
	_ = s.tmp.Close()
	_ = os.Remove(s.tmp.Name())
}

// regularFileExists reports whether there is a file at path, and not a pipe, a
// device or a directory.
func regularFileExists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

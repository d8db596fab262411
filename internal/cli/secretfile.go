package cli

import (
	"encoding/json"
	"fmt"
	"os"

	"postern.dev/postern/internal/wholefile"
)

// secretFile is a file that appears whole, readable by its owner only, or not at
// all.
type secretFile struct {
	replace bool
	whole   *wholefile.File
	direct  *os.File // a pipe or a device, in the place of whole
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
		return &secretFile{direct: f}, nil
	}
	f, err := wholefile.New(path)
	if err != nil {
		return nil, fmt.Errorf("write secret: %w", err)
	}
	return &secretFile{replace: replace, whole: f}, nil
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
	if s.direct != nil {
		if err := write(s.direct); err != nil {
			return fmt.Errorf("write secret: %w", err)
		}
		return nil
	}
	err := write(s.whole.File)
	if err == nil {
		err = s.whole.Commit(s.replace)
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
	s.whole.Discard()
}

// regularFileExists reports whether there is a file at path, and not a pipe, a
// device or a directory.
func regularFileExists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

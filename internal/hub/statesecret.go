package hub

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Secret returns what is kept under a name (a-z, 0-9 and '-'). What has not been
// kept yet is made with generate, and is on disk when Secret returns. A kept
// secret that vanished or changed is a *StateError with ErrStateCorrupt.
func (s *State) Secret(name string, generate func() ([]byte, error)) ([]byte, error) {
	if err := checkSecretName(name); err != nil {
		return nil, err
	}
	file := filepath.Join(keysDir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.record.Files[file]; ok {
		return s.readKept(file)
	}
	// A file without a record was cut off before anybody got it.
	b, err := generate()
	if err != nil {
		return nil, fmt.Errorf("make secret %s: %w", name, err)
	}
	if err := s.keep(file, b); err != nil {
		return nil, err
	}
	return b, s.writeRecord()
}

// RemoveSecret forgets a secret; it is no error if there is none.
func (s *State) RemoveSecret(name string) error {
	if err := checkSecretName(name); err != nil {
		return err
	}
	file := filepath.Join(keysDir, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.record.Files[file]; !ok {
		return nil
	}
	delete(s.record.Files, file)
	if err := s.writeRecord(); err != nil {
		return err
	}
	if err := os.Remove(s.Path(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError(s.Path(file), err)
	}
	return nil
}

// checkSecretName allows names of 1 to 128 characters that are safe as file names.
func checkSecretName(name string) error {
	if name == "" || len(name) > 128 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("secret name %q: want 1 to 128 characters of a-z, 0-9 and '-'", name)
	}
	return nil
}

package hub

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"postern.dev/postern/internal/identity"
)

const (
	adminPrefix   = "postern-admin-" // so that scanners for leaked secrets know it
	minAdminToken = 32               // characters of an administrator's token
)

// loadAdmin reads the administrator's token, or makes one where there is none:
// that is how it is replaced.
func (s *State) loadAdmin(log *slog.Logger) error {
	name := s.Path(adminFile)
	if s.record.AdminOff {
		return nil
	}
	b, err := readPrivate(name)
	if errors.Is(err, fs.ErrNotExist) {
		token, err := s.newAdmin()
		if err != nil {
			return err
		}
		b = []byte(token)
		if !s.fresh {
			log.Warn("made a new administrator's token, because there was none; the one before is void", "file", name)
		}
	} else if err != nil {
		return err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minAdminToken {
		return stateError(ErrStateCorrupt, name, "it holds %d characters, fewer than a token has; delete it, and the hub makes a new one", len(token))
	}
	s.adminHash = identity.HashSecret(token)
	return nil
}

// newAdmin draws an administrator's token and writes its file.
func (s *State) newAdmin() (string, error) {
	secret, err := randomText()
	if err != nil {
		return "", err
	}
	token := adminPrefix + secret
	return token, writeFile(s.Path(adminFile), []byte(token+"\n"))
}

// RotateAdmin replaces the administrator's token and its file, and returns the new
// one. The old one is void when it returns. One that was switched off is on again.
func (s *State) RotateAdmin() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, err := s.newAdmin()
	if err != nil {
		return "", err
	}
	s.adminHash = identity.HashSecret(token)
	if s.record.AdminOff {
		s.record.AdminOff = false
		return token, s.writeRecord()
	}
	return token, nil
}

// DisableAdmin switches the administrator's token off and removes its file.
func (s *State) DisableAdmin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.AdminOff = true
	if err := s.writeRecord(); err != nil {
		s.record.AdminOff = false
		return err
	}
	s.adminHash = ""
	if err := os.Remove(s.Path(adminFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError(s.Path(adminFile), err)
	}
	return nil
}

// EnableAdmin makes a new administrator's token for the hub whose state is in a
// directory, while that hub is stopped, and returns the token's file. It is for
// whoever may write the directory, and so needs no other right.
func EnableAdmin(dir string, log *slog.Logger) (file string, err error) {
	if _, err := readPrivate(filepath.Join(dir, stateFile)); err != nil {
		return "", err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	s := &State{dir: dir, lock: lock}
	if found, err := s.readRecord(); err != nil {
		return "", err
	} else if !found || !s.record.Complete {
		return "", stateError(ErrStateForeign, dir, "its first start was cut off; start the hub, which makes a token")
	}
	if _, err := s.RotateAdmin(); err != nil {
		return "", err
	}
	log.Info("administrator's token made", "file", s.AdminTokenFile())
	return s.AdminTokenFile(), nil
}

package hub

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"

	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/identity"
)

// busKeyPrefix begins the names of the files with bus keys, but for the first one's.
const busKeyPrefix = "bus-key-"

// busCopies matches the names of the bus's directory, but for the first one's.
var busCopies = regexp.MustCompile(`^bus-[0-9a-f]{16}$`)

func (r *stateRecord) busDir() string     { return cmp.Or(r.BusDir, busDir) }
func (r *stateRecord) busKeyFile() string { return cmp.Or(r.BusKeyFile, busFile) }

// RotateKeyOptions says how the key of the bus's store is replaced.
type RotateKeyOptions struct {
	BusKeyFile    string // the file with the key so far; empty: it is kept in the directory
	NewBusKeyFile string // the file with the new key; empty: one is made, and kept in the directory
	Log           *slog.Logger
}

// RotateBusKey encrypts the bus's store anew, with another key. No hub may run on
// the directory. The store is copied, and the directory's record says which one
// is in use: whenever this is cut off, either the old store with the old key is
// complete, or the new one with the new key, and it can be done again. It needs
// free space for a second store.
func RotateBusKey(ctx context.Context, dir string, o RotateKeyOptions) error {
	if err := existingState(dir); err != nil {
		return err
	}
	next, err := readBusKeyFile(o.NewBusKeyFile)
	if err != nil {
		return err
	}
	s, err := OpenState(dir, StateOptions{BusKeyFile: o.BusKeyFile, Log: o.Log})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return s.rotateBusKey(ctx, next, o.Log)
}

// rotateBusKey is RotateBusKey for an open directory. A nil key means a new one
// that is kept here.
func (s *State) rotateBusKey(ctx context.Context, key []byte, log *slog.Logger) error {
	seeds, err := s.busSeeds()
	if err != nil {
		return err
	}
	suffix := make([]byte, 8)
	if _, err := rand.Read(suffix); err != nil {
		return fmt.Errorf("draw a name: %w", err)
	}
	dir, file := busDir+"-"+hex.EncodeToString(suffix), ""
	record := s.record
	record.Remove = append(record.Remove, record.busDir())
	if _, kept := record.Files[record.busKeyFile()]; kept {
		record.Remove = append(record.Remove, record.busKeyFile())
	}
	record.Files = without(record.Files, record.Remove)
	if key == nil {
		text, err := randomText()
		if err != nil {
			return err
		}
		key, file = []byte(text), filepath.Join(keysDir, busKeyPrefix+hex.EncodeToString(suffix))
		if err := writeFile(s.Path(file), []byte(text+"\n")); err != nil {
			return err
		}
		record.Files[file] = identity.HashSecret(text + "\n")
	}
	conf := s.busConfig(log)
	if err := embedded.Rekey(ctx, conf, seeds, s.Path(dir), key); err != nil {
		return err
	}
	record.BusDir, record.BusKeyFile = dir, file
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.record
	s.record = record
	if err := s.writeRecord(); err != nil {
		s.record = before
		return err
	}
	s.busKey = key
	return s.removeReplaced()
}

// busSeeds returns the keys that make the bus this bus.
func (s *State) busSeeds() ([]byte, error) { return s.Secret("bus", embedded.NewSeeds) }

// busConfig says how the bus runs on this directory.
func (s *State) busConfig(log *slog.Logger) embedded.Config {
	return embedded.Config{
		Dir: s.BusDir(), EncryptionKey: s.BusKey(), TrustDomain: s.TrustDomain(), Node: s.Node(), Log: log,
	}
}

// removeReplaced deletes what a new store has replaced. s.mu is held, or nobody
// else has s.
func (s *State) removeReplaced() error {
	if len(s.record.Remove) == 0 {
		return nil
	}
	for _, name := range s.record.Remove {
		if err := os.RemoveAll(s.Path(name)); err != nil {
			return fileError(s.Path(name), err)
		}
	}
	s.record.Remove = nil
	return s.writeRecord()
}

// removeStrayStores deletes copies of the bus's store that were not completed, and
// their keys. They do no harm, so neither does a failure.
func (s *State) removeStrayStores() {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if busCopies.MatchString(e.Name()) && e.Name() != s.record.busDir() {
			_ = os.RemoveAll(s.Path(e.Name()))
		}
	}
	keys, _ := filepath.Glob(s.Path(filepath.Join(keysDir, busKeyPrefix+"*")))
	for _, name := range keys {
		rel, err := filepath.Rel(s.dir, name)
		if _, known := s.record.Files[rel]; err == nil && !known {
			_ = os.Remove(name)
		}
	}
}

// existingState makes sure that a directory is a hub's, before it is opened:
// opening an empty one would make a new hub of it.
func existingState(dir string) error {
	_, err := os.Stat(filepath.Join(dir, stateFile)) //nolint:gosec // the directory is the operator's choice
	if errors.Is(err, fs.ErrNotExist) {
		return stateError(ErrStateForeign, dir, "it has no %s", stateFile)
	} else if err != nil {
		return fileError(dir, err)
	}
	return nil
}

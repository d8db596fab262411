package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wholefile"
)

// Why a state directory cannot be used.
var (
	ErrStateForeign    = errors.New("directory is not a hub's")
	ErrStateTaken      = errors.New("directory is not empty")
	ErrStateVersion    = errors.New("directory has another format")
	ErrStateCorrupt    = errors.New("state is corrupt")
	ErrStateLocked     = errors.New("another hub is running on the directory")
	ErrStatePermission = errors.New("state cannot be accessed")
	ErrStateExposed    = errors.New("state is open to other users")
	ErrStateOptions    = errors.New("option does not fit the state")
)

// hints says what to do about each.
var hints = map[error]string{
	ErrStateForeign:    "give a directory that does not exist or is empty, or one that a hub made",
	ErrStateTaken:      "a backup is restored into a directory that does not exist or is empty",
	ErrStateVersion:    "run the version of postern that made it, or a newer one",
	ErrStateCorrupt:    "restore it from a backup",
	ErrStateLocked:     "stop the other hub, or give another directory",
	ErrStatePermission: "let the user that runs the hub read and write it",
	ErrStateExposed:    "take the rights of others away with chmod o-rwx, and consider its secrets known",
	ErrStateOptions:    "",
}

// StateError says why a state directory cannot be used, and what to do.
type StateError struct {
	Path   string // the directory, or the file in it
	Kind   error  // one of the ErrState…
	Detail string
	Err    error // the system's error, if there was one
}

// Error returns "state PATH: kind: detail (hint)".
func (e *StateError) Error() string {
	s := fmt.Sprintf("state %s: %s: %s", e.Path, e.Kind, e.Detail)
	if hint := hints[e.Kind]; hint != "" {
		s += " (" + hint + ")"
	}
	return s
}

// Unwrap returns the kind and the system's error.
func (e *StateError) Unwrap() []error { return []error{e.Kind, e.Err} }

func stateError(kind error, path, format string, args ...any) error {
	return &StateError{Path: path, Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// fileError explains what the system said about a file or directory.
func fileError(path string, err error) error {
	cause := err
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		cause = p.Err
	}
	return &StateError{Path: path, Kind: ErrStatePermission, Detail: cause.Error(), Err: err}
}

// readPrivate reads a file that others must not have access to. The group may:
// container platforms give volumes to a group.
func readPrivate(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileError(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, stateError(ErrStateCorrupt, name, "it is no regular file")
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, stateError(ErrStateExposed, name, "its mode is %04o", info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, fileError(name, err)
	}
	if len(b) > maxSecretFile {
		return nil, stateError(ErrStateCorrupt, name, "it is longer than %d bytes", maxSecretFile)
	}
	return b, nil
}

// readBusKeyFile reads a bus key that the operator keeps; it returns nil without
// a name.
func readBusKeyFile(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	b, err := readPrivate(name)
	if err != nil {
		return nil, err
	}
	key := strings.TrimSpace(string(b))
	if len(key) < minBusKey {
		return nil, stateError(ErrStateOptions, name, "a bus key has at least %d characters, and this one has %d", minBusKey, len(key))
	}
	return []byte(key), nil
}

// readKept reads a file whose hash is in the record.
func (s *State) readKept(name string) ([]byte, error) {
	b, err := readPrivate(s.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, stateError(ErrStateCorrupt, s.Path(name), "it is missing")
	}
	if err != nil {
		return nil, err
	}
	if !identity.SecretMatches(string(b), s.record.Files[name]) {
		return nil, stateError(ErrStateCorrupt, s.Path(name), "it was changed or truncated")
	}
	return b, nil
}

// keep writes a file and notes its hash; the record is not written yet.
func (s *State) keep(name string, b []byte) error {
	if err := writeFile(s.Path(name), b); err != nil {
		return err
	}
	s.record.Files[name] = identity.HashSecret(string(b))
	return nil
}

// writeRecord writes state.json.
func (s *State) writeRecord() error {
	b, err := json.MarshalIndent(s.record, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return writeFile(s.Path(stateFile), append(b, '\n'))
}

// writeFile puts a private file in place, whole or not at all, also if the
// machine loses power.
func writeFile(name string, b []byte) error {
	if err := wholefile.Replace(name, b, 0o600); err != nil {
		return fileError(name, err)
	}
	return nil
}

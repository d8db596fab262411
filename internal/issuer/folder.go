package issuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/wholefile"
)

// Keys is where an issuer's keys are kept.
type Keys interface {
	// Load returns the keys as they are now.
	Load() (Ring, error)

	// Change changes the keys and keeps the change, which is durable when Change
	// returns. A change that says so, or fails, leaves them as they were. No other
	// process changes them meanwhile. ErrReadOnly: somebody else changes these.
	Change(func(*Ring) (changed bool, err error)) (Ring, error)

	// Stamp returns a text that differs after somebody else changed the keys.
	Stamp() string
}

// Why keys cannot be used.
var (
	// ErrReadOnly is of keys that whoever mounted them changes.
	ErrReadOnly = errors.New("these keys are read only")

	// ErrCorrupt is of files that are not what they have to be. Nothing replaces them by
	// itself: a new key would lock everybody out whose policies trust the old ones.
	ErrCorrupt = errors.New("signing keys cannot be used")
)

// Place says where the keys of an issuer are. One field beside Cluster is set.
type Place struct {
	Mounted string // folder that somebody else keeps
	Secret  string // [NAMESPACE/]NAME of a Secret of the issuer's own, in Cluster
	Own     string // directory of the issuer's own, if none of these is set
	Cluster *podcluster.Cluster
}

// OpenKeys returns the keys in a place.
func OpenKeys(p Place) (Keys, error) {
	switch {
	case p.Mounted != "":
		return &Mounted{Dir: p.Mounted}, nil
	case p.Secret != "":
		return NewSecret(p.Cluster, p.Secret)
	}
	return NewFolder(p.Own)
}

const (
	keysFile   = "keys.json"
	keysFormat = 1
	maxFile    = 64 << 10 // bytes of a file with keys
)

// Folder keeps keys in a directory of the issuer's own, in one file that only its owner
// can read. Several processes may use it. Safe for concurrent use.
type Folder struct{ dir string }

// NewFolder returns the keys in a directory, which is made if there is none.
func NewFolder(dir string) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of signing keys: %w", err)
	}
	return &Folder{dir: dir}, nil
}

// ExistingFolder returns the keys in a directory that has some already: those of an
// issuer that may be running.
func ExistingFolder(dir string) (*Folder, error) {
	f := &Folder{dir: dir}
	if _, err := os.Stat(f.file()); err != nil {
		return nil, fmt.Errorf("%s is no directory of an issuer: %w", dir, err)
	}
	return f, nil
}

// Rotate is Ring.Rotate of keys, with one of the kind that signs. An issuer that runs
// with them follows within seconds. Errors are *wire.Failure.
func Rotate(keys Keys, now time.Time, atOnce bool) (Ring, error) {
	r, err := keys.Change(func(r *Ring) (bool, error) {
		k, ok := r.Signing()
		if !ok {
			return false, ErrUnknownKey
		}
		return true, r.Rotate(now, atOnce, k.Type, NewKey)
	})
	return r, keysFailure(err)
}

// Withdraw is Ring.Withdraw of a key, with a successor of the same kind if it signed. An
// issuer that runs with the keys follows within seconds. Errors are *wire.Failure.
func Withdraw(keys Keys, now time.Time, id string) (Key, error) {
	var gone Key
	_, err := keys.Change(func(r *Ring) (_ bool, err error) {
		if gone, err = r.Withdraw(id); err != nil {
			return false, err
		}
		if _, signs := r.Signing(); !signs {
			_, err = r.Step(now, Schedule{}, gone.Type, NewKey)
		}
		return true, err
	})
	return gone, keysFailure(err)
}

// keysRecord is keys.json.
type keysRecord struct {
	Format int         `json:"format"`
	Keys   []keyRecord `json:"keys"`
}

type keyRecord struct {
	ID      string    `json:"id"`
	Phase   Phase     `json:"phase"`
	Created time.Time `json:"created"`
	Since   time.Time `json:"since"`
	Key     string    `json:"key"` // PKCS #8 in PEM
}

// Load implements Keys.
func (f *Folder) Load() (Ring, error) {
	b, err := readFile(f.file(), true)
	if errors.Is(err, fs.ErrNotExist) {
		return Ring{}, nil
	}
	if err != nil {
		return Ring{}, err
	}
	r, err := parseRecord(b)
	if err != nil {
		return Ring{}, fmt.Errorf("%s: %w: %w", f.file(), ErrCorrupt, err)
	}
	return r, nil
}

// parseRecord reads keys.json.
func parseRecord(b []byte) (Ring, error) {
	var record keysRecord
	if err := json.Unmarshal(b, &record); err != nil {
		return Ring{}, errors.New("it is not JSON of the right kind")
	}
	if record.Format != keysFormat {
		return Ring{}, fmt.Errorf("its format is %d, and this version knows %d", record.Format, keysFormat)
	}
	var r Ring
	for i, one := range record.Keys {
		k, err := parseKey([]byte(one.Key))
		if err != nil {
			return Ring{}, fmt.Errorf("key %d: %w", i+1, err)
		}
		if k.signer == nil || k.ID != one.ID {
			return Ring{}, fmt.Errorf("key %d is not the one that it says", i+1)
		}
		k.Phase, k.Created, k.Since = one.Phase, one.Created, one.Since
		r.keys = append(r.keys, k)
	}
	if len(r.keys) == 0 {
		return Ring{}, errors.New("it holds no key")
	}
	return r, r.check()
}

// marshalRing is the contents of keys.json.
func marshalRing(r Ring) ([]byte, error) {
	record := keysRecord{Format: keysFormat}
	for _, k := range r.keys {
		b, err := k.marshal()
		if err != nil {
			return nil, err
		}
		record.Keys = append(record.Keys, keyRecord{ID: k.ID, Phase: k.Phase, Created: k.Created, Since: k.Since, Key: string(b)})
	}
	b, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode signing keys: %w", err)
	}
	return append(b, '\n'), nil
}

// Change implements Keys.
func (f *Folder) Change(change func(*Ring) (bool, error)) (Ring, error) {
	unlock, err := lockDir(f.dir)
	if err != nil {
		return Ring{}, fmt.Errorf("lock %s: %w", f.dir, err)
	}
	defer unlock()
	r, err := f.Load()
	if err != nil {
		return Ring{}, err
	}
	changed, err := change(&r)
	if err != nil || !changed {
		return r, err
	}
	b, err := marshalRing(r)
	if err != nil {
		return Ring{}, err
	}
	if err := wholefile.Replace(f.file(), b, 0o600); err != nil {
		return Ring{}, fmt.Errorf("write signing keys: %w", err)
	}
	return r, nil
}

// Stamp implements Keys.
func (f *Folder) Stamp() string { return stampOf(f.file()) }

func (f *Folder) file() string { return filepath.Join(f.dir, keysFile) }

// The file of a Mounted folder whose key signs.
const signingFile = "signing.pem"

// Mounted is keys in a folder that somebody else keeps, one in each file that ends with
// .pem: a Kubernetes Secret, for instance. The private key in signing.pem signs; those in
// the other files, private or public, are published. Whoever keeps the folder rotates:
// the next key in any file first, in signing.pem a day later, and the last one in any
// file for two hours more. Safe for concurrent use.
type Mounted struct{ Dir string }

// maxMounted bounds how many keys a folder may hold.
const maxMounted = 16

// Load implements Keys.
func (m *Mounted) Load() (Ring, error) {
	names, err := filepath.Glob(filepath.Join(m.Dir, "*.pem"))
	if err != nil {
		return Ring{}, fmt.Errorf("look into %s: %w", m.Dir, err)
	}
	if len(names) > maxMounted {
		return Ring{}, fmt.Errorf("%s: %w: it holds %d keys, at most %d are possible", m.Dir, ErrCorrupt, len(names), maxMounted)
	}
	var r Ring
	ids := make(map[string]bool)
	for _, name := range names {
		b, err := readFile(name, false)
		if err != nil {
			return Ring{}, err
		}
		k, err := parseKey(b)
		if err != nil {
			return Ring{}, fmt.Errorf("%s: %w: %w", name, ErrCorrupt, err)
		}
		if filepath.Base(name) == signingFile {
			if k.signer == nil {
				return Ring{}, fmt.Errorf("%s: %w: it holds no private key", name, ErrCorrupt)
			}
			k.Phase = Signing
			r.keys = append([]Key{k}, r.keys...)
			continue
		}
		if !ids[k.ID] { // it may be there as a private and a public one
			k.Phase = Published
			r.keys = append(r.keys, k)
		}
		ids[k.ID] = true
	}
	signing, ok := r.Signing()
	if !ok {
		return Ring{}, fmt.Errorf("%s: %w: there is no %s", m.Dir, ErrCorrupt, signingFile)
	}
	var all Ring
	for _, k := range r.keys { // the one that signs may still stand under its older name
		if k.Phase == Signing || k.ID != signing.ID {
			all.keys = append(all.keys, k)
		}
	}
	return all, nil
}

// Change implements Keys.
func (m *Mounted) Change(func(*Ring) (bool, error)) (Ring, error) {
	r, err := m.Load()
	if err != nil {
		return Ring{}, err
	}
	return r, fmt.Errorf("%s: %w: whoever mounted them changes them", m.Dir, ErrReadOnly)
}

// Stamp implements Keys.
func (m *Mounted) Stamp() string {
	names, _ := filepath.Glob(filepath.Join(m.Dir, "*.pem")) // the pattern is good
	var b strings.Builder
	for _, name := range names {
		b.WriteString(name)
		b.WriteString(stampOf(name))
	}
	return b.String()
}

func stampOf(name string) string {
	st, err := os.Stat(name) // follows the links that Kubernetes swaps
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(";", st.ModTime().UnixNano(), st.Size(), st.Mode(), ";")
}

// readFile reads a file of keys. One of our own must not be readable by all; a mounted
// one is as whoever mounted it wants it.
func readFile(name string, own bool) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: %w: it is no regular file", name, ErrCorrupt)
	case own && info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s: %w: others may read it (mode %04o); if nobody did, chmod 600 it, else withdraw its keys", name, ErrCorrupt, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: %w: it is longer than %d bytes", name, ErrCorrupt, maxFile)
	}
	return b, nil
}

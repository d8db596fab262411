package hub

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wholefile"
)

// The files of a state directory. Beside them stand the directory keysDir, with
// a file per secret that others keep here, and busDir, which is the bus's own.
const (
	stateFile = "state.json" // written first and last at the first start: the mark of our directories
	caFile    = "ca.crt"
	caKeyFile = "ca.key"
	tokenFile = "token.key"
	adminFile = "admin.token"
	busFile   = "bus.key"
	keysDir   = "keys"
	busDir    = "bus"
)

const (
	stateProduct = "postern-hub"
	stateFormat  = 1

	minBusKey      = 32       // characters of a bus key
	randomSecret   = 32       // bytes
	maxSecretFile  = 64 << 10 // bytes read of any file here
	domainOfNewHub = ".postern.internal"
)

// StateOptions are the choices of whoever opens a state directory.
type StateOptions struct {
	// TrustDomain is for a new directory; empty means a random one. An existing
	// directory must have the same, if it is given.
	TrustDomain string

	// BusKeyFile names a file with the key that encrypts the bus's state, of 32
	// characters at least. Empty means the file bus.key in the directory, made
	// at first start.
	BusKeyFile string

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: none
}

// State is a hub's state directory, locked for this process. Its methods are
// safe for concurrent use.
type State struct {
	dir    string
	fresh  bool
	lock   *os.File
	trust  atomic.Pointer[Trust]
	signer *identity.TokenSigner
	busKey []byte

	mu        sync.Mutex
	record    stateRecord // guarded by mu
	adminHash string      // guarded by mu; empty: the token is switched off
}

// stateRecord is state.json.
type stateRecord struct {
	Product     string            `json:"product"`
	Format      int               `json:"format"`
	Complete    bool              `json:"complete"` // false while a first start is under way
	TrustDomain string            `json:"trustDomain"`
	Node        string            `json:"node"`
	Created     time.Time         `json:"created"`
	Files       map[string]string `json:"files"`                 // the SHA-256 of each file that must be there and never changes
	Authorities []AuthorityRecord `json:"authorities,omitempty"` // the newest first
	Generation  int               `json:"generation,omitempty"`  // of the authorities: grows with each change
	AdminOff    bool              `json:"adminOff,omitempty"`    // the administrator's token is switched off
	BusDir      string            `json:"busDir,omitempty"`      // the bus's directory; empty: busDir
	BusKeyFile  string            `json:"busKeyFile,omitempty"`  // with the bus's key, if it is kept here; empty: busFile
	Remove      []string          `json:"remove,omitempty"`      // what was replaced, and may still be there
}

// OpenState opens a state directory and locks it; a directory that does not
// exist or is empty becomes a new hub's. Errors are *StateError with one of the
// ErrState… in their chain; where one is returned, nothing in an existing
// directory was changed. Close the State when the hub has ended.
func OpenState(dir string, o StateOptions) (*State, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TrustDomain != "" {
		if err := identity.ValidateTrustDomain(o.TrustDomain); err != nil {
			return nil, stateError(ErrStateOptions, dir, "%s", err)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fileError(dir, err)
	}
	// What does not concern the directory is checked before it is made.
	givenKey, err := readBusKeyFile(o.BusKeyFile)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return nil, stateError(ErrStateForeign, dir, "it is no directory")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fileError(dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &State{dir: dir, lock: lock, busKey: givenKey}
	if err := s.open(o); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *State) open(o StateOptions) error {
	if info, err := s.lock.Stat(); err != nil {
		return fileError(s.dir, err)
	} else if info.Mode().Perm()&0o002 != 0 {
		return stateError(ErrStateExposed, s.dir, "its mode is %04o", info.Mode().Perm())
	}
	switch found, err := s.readRecord(); {
	case err != nil:
		return err
	case !found || !s.record.Complete:
		if err := s.create(o); err != nil {
			return err
		}
		s.fresh = true
	}
	return s.load(o)
}

// readRecord reads state.json and reports whether there is one. There may be
// none in an empty directory only.
func (s *State) readRecord() (found bool, err error) {
	b, err := readPrivate(s.Path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(s.dir)
		if err != nil {
			return false, fileError(s.dir, err)
		}
		for _, e := range entries {
			if e.Name() != "lost+found" && !wholefile.IsLeftover(e.Name()) { // an empty file system has lost+found
				return false, stateError(ErrStateForeign, s.dir, "it holds %q and no %s", e.Name(), stateFile)
			}
		}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, &s.record); err != nil {
		return false, stateError(ErrStateCorrupt, s.Path(stateFile), "it is not JSON: %s", err)
	}
	r := &s.record
	if r.Product != stateProduct {
		return false, stateError(ErrStateForeign, s.dir, "its %s is not a hub's", stateFile)
	}
	if r.Format != stateFormat {
		return false, stateError(ErrStateVersion, s.dir, "its format is %d, and this version knows format %d", r.Format, stateFormat)
	}
	for _, name := range append(slices.Collect(maps.Keys(r.Files)), append(r.Remove, r.busDir(), r.busKeyFile())...) {
		if !filepath.IsLocal(name) {
			return false, stateError(ErrStateCorrupt, s.Path(stateFile), "it names %q", name)
		}
	}
	return true, nil
}

// create fills an empty directory, or one where a first start was cut off. No
// party can have got anything from that one, since no hub ran on it.
func (s *State) create(o StateOptions) error {
	for _, name := range []string{caFile, caKeyFile, tokenFile, adminFile, busFile, keysDir, busDir} {
		if err := os.RemoveAll(s.Path(name)); err != nil {
			return fileError(s.Path(name), err)
		}
	}
	suffix := make([]byte, 6)
	if _, err := rand.Read(suffix); err != nil {
		return fmt.Errorf("draw a name: %w", err)
	}
	name := "hub-" + hex.EncodeToString(suffix)
	s.record = stateRecord{
		Product: stateProduct, Format: stateFormat, TrustDomain: o.TrustDomain, Node: name,
		Created: o.Now().UTC().Truncate(time.Second), Files: map[string]string{},
	}
	if s.record.TrustDomain == "" {
		s.record.TrustDomain = name + domainOfNewHub
	}
	if err := s.writeRecord(); err != nil {
		return err
	}
	authority, err := identity.NewAuthority(s.record.TrustDomain, o.Now())
	if err != nil {
		return err
	}
	signer, err := identity.NewTokenSigner(s.record.TrustDomain)
	if err != nil {
		return err
	}
	caKey, err := authority.KeyPEM()
	if err != nil {
		return err
	}
	tokenKey, err := signer.KeyPEM()
	if err != nil {
		return err
	}
	s.record.Generation = 1
	s.record.Authorities = []AuthorityRecord{{
		Pin: authority.Pin(), Phase: PhaseSigning, Since: s.record.Created, Certificate: string(authority.CertificatePEM()),
		KeyFile: caKeyFile, Generation: 1,
	}}
	files := map[string][]byte{caKeyFile: caKey, tokenFile: tokenKey}
	if s.busKey == nil {
		key, err := randomText()
		if err != nil {
			return err
		}
		files[busFile] = []byte(key + "\n")
	}
	for name, b := range files {
		if err := s.keep(name, b); err != nil {
			return err
		}
	}
	if err := os.Mkdir(s.Path(keysDir), 0o700); err != nil {
		return fileError(s.Path(keysDir), err)
	}
	s.record.Complete = true
	return s.writeRecord()
}

// load reads and checks what the directory holds.
func (s *State) load(o StateOptions) error {
	if o.TrustDomain != "" && o.TrustDomain != s.record.TrustDomain {
		return stateError(ErrStateOptions, s.dir, "its trust domain is %s and cannot be changed to %s", s.record.TrustDomain, o.TrustDomain)
	}
	files := make(map[string][]byte)
	for _, name := range slices.Sorted(maps.Keys(s.record.Files)) {
		if name == s.record.busKeyFile() && s.busKey != nil {
			continue // the operator may have moved it away, or replaced it together with the bus
		}
		b, err := s.readKept(name)
		if err != nil {
			return err
		}
		files[name] = b
	}
	if err := s.loadAuthorities(files); err != nil {
		return err
	}
	var err error
	if s.signer, err = identity.LoadTokenSigner(s.record.TrustDomain, files[tokenFile]); err != nil {
		return stateError(ErrStateCorrupt, s.dir, "%s: %s", tokenFile, err)
	}
	if s.busKey == nil {
		key, ok := files[s.record.busKeyFile()]
		if !ok {
			return stateError(ErrStateOptions, s.dir, "it was made with a bus key that is kept elsewhere: give its file")
		}
		s.busKey = []byte(strings.TrimSpace(string(key)))
	}
	if err := s.loadAdmin(o.Log); err != nil {
		return err
	}
	wholefile.Tidy(s.dir, s.Path(keysDir))
	s.removeStrayStores()
	if err := s.removeReplaced(); err != nil {
		return err
	}
	return s.writeBundle()
}

// Path returns the path of a file in the directory.
func (s *State) Path(name string) string { return filepath.Join(s.dir, name) }

// CAFile returns the path of the authorities that are trusted, in PEM.
func (s *State) CAFile() string { return s.Path(caFile) }

// AdminTokenFile returns the path of the administrator's token.
func (s *State) AdminTokenFile() string { return s.Path(adminFile) }

// BusDir returns the path that is the bus's own; the bus makes it.
func (s *State) BusDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Path(s.record.busDir())
}

// BusKey returns the key that encrypts the bus's state: at least 32 random
// characters.
func (s *State) BusKey() []byte { return slices.Clone(s.busKey) }

// Fresh reports whether OpenState made this hub.
func (s *State) Fresh() bool { return s.fresh }

// TrustDomain returns the hub's trust domain.
func (s *State) TrustDomain() string { return s.Trust().Signing.TrustDomain() }

// Node returns the name of this hub node.
func (s *State) Node() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.Node
}

// Authority returns the certificate authority that signs now.
func (s *State) Authority() *identity.Authority { return s.Trust().Signing }

// Tokens returns the signer of robot tokens.
func (s *State) Tokens() *identity.TokenSigner { return s.signer }

// IsAdmin reports whether token is the administrator's, and not switched off.
func (s *State) IsAdmin(token string) bool {
	s.mu.Lock()
	hash := s.adminHash
	s.mu.Unlock()
	return hash != "" && identity.SecretMatches(token, hash)
}

// Close unlocks the directory.
func (s *State) Close() error { return s.lock.Close() }

// randomText returns 32 random bytes as text.
func randomText() (string, error) {
	b := make([]byte, randomSecret)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("draw a secret: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

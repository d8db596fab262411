package embedded

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"postern.dev/postern/internal/wholefile"
)

// Errors of Start about the store directory.
var (
	ErrWrongKey = errors.New("the bus's store is encrypted with another key")
	ErrForeign  = errors.New("the directory is not a bus's store")
)

// keyLen is the least length of an encryption key, in bytes.
const keyLen = 32

// checkFile holds a random salt and the HMAC-SHA256 of it with the encryption
// key. NATS skips what it cannot decrypt, with no more than a warning, and an
// empty registry would come up; so the key is checked before NATS sees the
// directory.
const (
	checkFile = "key-check"
	checkInfo = "postern bus store"
	saltLen   = 32
)

// checkKey makes sure that key is that of the store in dir, and claims a
// directory that is new or empty for it. It changes nothing otherwise.
func checkKey(dir string, key []byte) error {
	if len(key) < keyLen {
		return fmt.Errorf("encryption key of the bus's store has %d bytes; at least %d are needed", len(key), keyLen)
	}
	name := filepath.Join(dir, checkFile)
	data, err := os.ReadFile(name)
	switch {
	case err == nil && len(data) != saltLen+sha256.Size:
		return fmt.Errorf("%w: %s is damaged", ErrForeign, name)
	case err == nil && !hmac.Equal(data[saltLen:], keySum(key, data[:saltLen])):
		return fmt.Errorf("%w: %s; start with the key that it was made with", ErrWrongKey, dir)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("check the key of the bus's store: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the bus's store: %w", err)
	}
	wholefile.Tidy(dir) // a first start that was cut off
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the bus's store: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: %s has files, but no %s", ErrForeign, dir, checkFile)
	}
	salt := make([]byte, saltLen)
	_, _ = rand.Read(salt) // never fails: see crypto/rand
	if err := wholefile.Replace(name, append(salt, keySum(key, salt)...), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func keySum(key, salt []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(checkInfo))
	h.Write(salt)
	return h.Sum(nil)
}

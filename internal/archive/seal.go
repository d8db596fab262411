package archive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// Keys are what an archive is encrypted for, or opened with. The zero value is
// none.
type Keys struct {
	Passphrase string
	Recipients []string // public keys "age1…", to encrypt
	Identities []byte   // an age identity file, to open
}

// errSealBroken marks what was changed or cut off inside an age file.
var errSealBroken = errors.New("its encrypted content was changed or cut off")

// Seal returns a writer that encrypts to w; close it to complete the file. Without
// keys it passes everything through. A passphrase and recipients exclude each
// other.
func Seal(w io.Writer, k Keys) (io.WriteCloser, error) {
	var recipients []age.Recipient
	switch {
	case k.Passphrase != "" && len(k.Recipients) > 0:
		return nil, errors.New("encrypt backup: a passphrase and recipients exclude each other")
	case k.Passphrase != "":
		r, err := age.NewScryptRecipient(k.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("encrypt backup: %w", err)
		}
		recipients = append(recipients, r)
	case len(k.Recipients) > 0:
		r, err := age.ParseRecipients(strings.NewReader(strings.Join(k.Recipients, "\n")))
		if err != nil {
			return nil, fmt.Errorf("encrypt backup: recipients: %w", err)
		}
		recipients = r
	default:
		return nopCloser{w}, nil
	}
	sealed, err := age.Encrypt(w, recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt backup: %w", err)
	}
	return sealed, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Open returns what Seal was given: it decrypts what is encrypted and passes
// anything else through. Errors are ErrEncrypted without a key, and ErrWrongKey.
func Open(r io.Reader, k Keys) (io.Reader, error) {
	const intro = "age-encryption.org/"
	b := bufio.NewReaderSize(r, 64<<10)
	start, _ := b.Peek(len(armor.Header)) // a shorter one is no age file
	switch {
	case bytes.HasPrefix(start, []byte(armor.Header)):
		r = armor.NewReader(b)
	case bytes.HasPrefix(start, []byte(intro)):
		r = b
	default:
		return b, nil
	}
	var identities []age.Identity
	if k.Passphrase != "" {
		i, err := age.NewScryptIdentity(k.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("open backup: %w", err)
		}
		identities = append(identities, i)
	}
	if len(k.Identities) > 0 {
		more, err := age.ParseIdentities(bytes.NewReader(k.Identities))
		if err != nil {
			return nil, errors.New("open backup: the identity file is not one of age") // the error could quote it
		}
		identities = append(identities, more...)
	}
	if len(identities) == 0 {
		return nil, ErrEncrypted
	}
	plain, err := age.Decrypt(r, identities...)
	if err != nil {
		if noMatch := (*age.NoIdentityMatchError)(nil); errors.As(err, &noMatch) {
			return nil, ErrWrongKey
		}
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return sealReader{plain}, nil
}

// sealReader marks errors of decryption.
type sealReader struct{ io.Reader }

// Read implements io.Reader.
func (s sealReader) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = errSealBroken
	}
	return n, err
}

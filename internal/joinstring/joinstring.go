// Package joinstring is the one text with which an agent joins an organization
// for the first time: where the hub is, by what to know it, which agent this is
// going to be, and a secret that is good once. Hubs write it, agents read it;
// between them people copy it, so it notices when a part is missing.
package joinstring

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"postern.dev/postern/internal/identity"
)

// Prefix begins every join string of this version. People and programs that look
// for leaked secrets know one by it.
const Prefix = "postern-join-1-"

// Sizes, in bytes.
const (
	idLen     = 8
	secretLen = 20 // 160 random bits
	pinLen    = sha256.Size
	sumLen    = 4
	maxPins   = 4
	maxURL    = 2048
	maxTime   = 1 << 40 // seconds since 1970

	// MaxLen bounds a join string.
	MaxLen = 4096
)

// family begins the join strings of all versions.
const family = "postern-join-"

// Why a text is not a join string. The text is a secret: no error quotes it.
var (
	ErrNone    = errors.New("it is not a join string, which begins with " + family)
	ErrVersion = errors.New("it is a join string of another version of Postern")
	ErrDamaged = errors.New("it is damaged: a part of it is missing or was changed on the way")
)

// String is what a join string says.
type String struct {
	ConnectURL   string
	Pins         []string // of the hub's authorities, as identity.Pin writes them; none: the hub has a certificate of a public CA
	Organization string
	Agent        string
	ID           string // names the join string in lists; not secret
	Secret       string // good for one use
	Expires      time.Time
}

// NewSecret draws an ID and a secret for a join string.
func NewSecret() (id, secret string) {
	b := make([]byte, idLen+secretLen)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b[:idLen]), hex.EncodeToString(b[idLen:])
}

// Encode writes a join string.
//
//	postern-join-1-BASE64URL( id 8 | secret 20 | expires uvarint
//	    | pins uvarint, 32 each | connect URL | organization | agent | checksum 4 )
//
// Texts have their length before them, as uvarint. The checksum is the begin of the
// SHA-256 of all before it, prefix included: against typing mistakes, not attackers.
func (s String) Encode() (string, error) {
	id, err := decodeHex(s.ID, idLen)
	if err != nil {
		return "", fmt.Errorf("encode join string: ID: %w", err)
	}
	secret, err := decodeHex(s.Secret, secretLen)
	if err != nil {
		return "", fmt.Errorf("encode join string: secret: %w", err)
	}
	b := append(id, secret...)
	b = binary.AppendUvarint(b, uint64(max(0, s.Expires.Unix())))
	b = binary.AppendUvarint(b, uint64(len(s.Pins)))
	for _, pin := range s.Pins {
		digest, err := decodeHex(strings.TrimPrefix(pin, pinPrefix), pinLen)
		if err != nil {
			return "", fmt.Errorf("encode join string: pin: %w", err)
		}
		b = append(b, digest...)
	}
	for _, text := range []string{s.ConnectURL, s.Organization, s.Agent} {
		b = append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	encoded := Prefix + base64.RawURLEncoding.EncodeToString(append(b, checksum(b)...))
	if _, err := Parse(encoded); err != nil {
		return "", fmt.Errorf("encode join string: %w", err)
	}
	return encoded, nil
}

const pinPrefix = "sha256:"

func decodeHex(s string, n int) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("want %d hexadecimal digits", 2*n)
	}
	return b, nil
}

func checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte(Prefix), b...))
	return sum[:sumLen]
}

// Parse reads a join string. White space in it, as mail programs and terminals
// put into long lines, does not matter. Errors are ErrNone, ErrVersion or
// ErrDamaged, or say which part of it is wrong.
func Parse(text string) (String, error) {
	if len(text) > 2*MaxLen {
		return String{}, ErrNone
	}
	text = strings.Join(strings.Fields(strings.TrimPrefix(text, "\ufeff")), "")
	rest, ok := strings.CutPrefix(text, Prefix)
	switch {
	case !strings.HasPrefix(text, family) || len(text) > MaxLen:
		return String{}, ErrNone
	case !ok && strings.HasPrefix(Prefix, text):
		return String{}, ErrDamaged
	case !ok:
		return String{}, ErrVersion
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) < idLen+secretLen+sumLen {
		return String{}, ErrDamaged
	}
	b, sum := b[:len(b)-sumLen], b[len(b)-sumLen:]
	if !bytes.Equal(sum, checksum(b)) {
		return String{}, ErrDamaged
	}
	r := reader{b: b}
	s := String{ID: hex.EncodeToString(r.take(idLen)), Secret: hex.EncodeToString(r.take(secretLen))}
	s.Expires = time.Unix(r.number(maxTime), 0).UTC()
	for range r.number(maxPins) {
		s.Pins = append(s.Pins, pinPrefix+hex.EncodeToString(r.take(pinLen)))
	}
	s.ConnectURL = r.text(maxURL)
	s.Organization, s.Agent = r.text(maxName), r.text(maxName)
	if r.bad || len(r.b) > 0 {
		return String{}, ErrDamaged
	}
	return s, s.validate()
}

// maxName bounds names; identity.ValidateName is stricter.
const maxName = 63

func (s String) validate() error {
	if err := errors.Join(identity.ValidateName("organization", s.Organization), identity.ValidateName("agent ID", s.Agent)); err != nil {
		return err
	}
	if s.ConnectURL == "" || strings.ContainsFunc(s.ConnectURL, func(r rune) bool { return r <= ' ' || r == utf8.RuneError || r == 0x7f }) {
		return errors.New("its connect URL is not one")
	}
	return nil
}

// CAPin returns the pins as the setting ca-pin takes them; "" when there is none.
func (s String) CAPin() string { return strings.Join(s.Pins, ",") }

// reader takes parts off the front; bad is set when there was too little.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	part := r.b[:n]
	r.b = r.b[n:]
	return part
}

// number takes a number of at most limit.
func (r *reader) number(limit int64) int64 {
	n, size := binary.Uvarint(r.b)
	if r.bad || size <= 0 || n > uint64(limit) { //nolint:gosec // limits are constants above 0
		r.bad = true
		return 0
	}
	r.b = r.b[size:]
	return int64(n) //nolint:gosec // at most limit
}

func (r *reader) text(limit int64) string { return string(r.take(int(r.number(limit)))) }

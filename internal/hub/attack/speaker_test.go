package attack_test

import (
	"bufio"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/wire"
)

// speaker speaks the bus's protocol byte by byte, as no library would.
type speaker struct {
	net.Conn
	r     *bufio.Reader
	nonce string
	grant *enroll.Grant
	errs  []string // what the server complained about
	heard []string // subjects of messages that came
}

// errTimeout is what a read gives that waited in vain.
var errTimeout = os.ErrDeadlineExceeded

// dialBus comes to the bus with a certificate and reads its first words.
func (w *world) dialBus(cert *tls.Certificate) (*speaker, error) {
	c, err := w.uplink.DialTLS(w.t.Context(), wire.ALPNBus, func() *tls.Certificate { return cert })
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	s := &speaker{Conn: c, r: bufio.NewReader(c)}
	line, err := s.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	var info struct {
		Nonce string `json:"nonce"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info); err != nil {
		return nil, fmt.Errorf("first words %q: %w", line, err)
	}
	s.nonce = info.Nonce
	return s, nil
}

// speak logs in to the bus with a grant's user, by a certificate that need not be the
// same grant's.
func (w *world) speak(g *enroll.Grant, cert *tls.Certificate) (*speaker, error) {
	s, err := w.dialBus(cert)
	if err != nil {
		return nil, err
	}
	s.grant = g
	return s, s.login(g.BusToken, seedKey(g.BusKey), nil)
}

// login sends CONNECT with a user token and a signature by key, and whatever else is
// given.
func (s *speaker) login(token string, key ed25519.PrivateKey, more map[string]any) error {
	fields := map[string]any{"verbose": false, "pedantic": false, "protocol": 1, "headers": true, "no_responders": true, "jwt": token}
	if key != nil {
		fields["sig"] = base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(s.nonce)))
	}
	maps.Copy(fields, more)
	b, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s, "CONNECT %s\r\n", b); err != nil {
		return err
	}
	before := len(s.errs)
	if err := s.flush(); err != nil {
		return err
	}
	if len(s.errs) > before {
		return errors.New(s.errs[len(s.errs)-1])
	}
	return nil
}

// flush waits until the server has dealt with what was said, and notes what it says
// meanwhile.
func (s *speaker) flush() error {
	if _, err := s.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			if len(s.errs) > 0 {
				err = fmt.Errorf("%s: %w", s.errs[len(s.errs)-1], err)
			}
			return err
		}
		switch verb, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " "); verb {
		case "PONG":
			return nil
		case "PING":
			_, err = s.Write([]byte("PONG\r\n"))
		case "-ERR":
			s.errs = append(s.errs, rest)
		case "MSG", "HMSG":
			words := strings.Fields(rest)
			n, convErr := strconv.Atoi(words[len(words)-1])
			if convErr != nil {
				return convErr
			}
			_, err = s.r.Discard(n + 2)
			s.heard = append(s.heard, words[0])
		case "INFO", "+OK":
		default:
			return fmt.Errorf("the bus says %q", line)
		}
		if err != nil {
			return err
		}
	}
}

// try says something and reports whether the server forbids it.
func (s *speaker) try(format string, args ...any) (forbidden bool, err error) {
	before := len(s.errs)
	if _, err := fmt.Fprintf(s, format+"\r\n", args...); err != nil {
		return false, err
	}
	if err := s.flush(); err != nil {
		return false, err
	}
	for _, e := range s.errs[before:] {
		if strings.Contains(e, "Permissions Violation") {
			return true, nil
		}
	}
	return false, nil
}

// public returns the public key of the speaker's user, from the subject of its token.
func public(g *enroll.Grant) string {
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(g.BusToken, ".")[1])
	var claims struct {
		Sub string `json:"sub"`
	}
	_ = json.Unmarshal(payload, &claims)
	return claims.Sub
}

// seedKey returns the key of an NKey's seed: two bytes of prefix, the seed, and two of
// checksum in base32.
func seedKey(seed []byte) ed25519.PrivateKey {
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(string(seed))
	if err != nil || len(raw) != 36 {
		panic("not a seed")
	}
	return ed25519.NewKeyFromSeed(raw[2:34])
}

// Prefixes of public NKeys.
const (
	prefixAccount  = 0 << 3
	prefixOperator = 14 << 3
	prefixUser     = 20 << 3
)

// nkey returns the text of a public key.
func nkey(prefix byte, key ed25519.PrivateKey) string {
	b := append([]byte{prefix}, key.Public().(ed25519.PublicKey)...)
	crc := uint16(0) // CRC-16/XMODEM
	for _, c := range b {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(append(b, byte(crc), byte(crc>>8)))
}

// jwt signs claims as NATS wants it.
func jwt(issuer ed25519.PrivateKey, claims map[string]any) string {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`))
	b, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	text := header + "." + base64.RawURLEncoding.EncodeToString(b)
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(issuer, []byte(text)))
}

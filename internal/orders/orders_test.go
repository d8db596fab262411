package orders

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
)

func newKey(t testing.TB) Key {
	t.Helper()
	seed, err := NewSeed()
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sample() Document {
	return Document{
		Organization: "acme", Agent: "office", Version: 7, Labels: map[string]string{"env": "prod"}, Access: access.Defaults(time.Now()),
		Limits: []byte(`{"streams":5}`),
	}
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	key, other := newKey(t), newKey(t)
	message, err := key.Seal(sample())
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(message, []string{"nonsense", other.Public(), key.Public()}, "acme", "office")
	if err != nil || d.Version != 7 || len(d.Access) != 5 || d.Labels["env"] != "prod" || string(d.Limits) != `{"streams":5}` {
		t.Errorf("got %+v, %v", d, err)
	}
	if _, err := Open(message, []string{other.Public(), "", "QUJD"}, "acme", "office"); !errors.Is(err, ErrForged) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Open(message, nil, "acme", "office"); !errors.Is(err, ErrForged) {
		t.Errorf("no key: %v", err)
	}
	for _, to := range [][2]string{{"acme", "plant"}, {"other", "office"}} {
		if _, err := Open(message, []string{key.Public()}, to[0], to[1]); !errors.Is(err, ErrForeign) {
			t.Errorf("%v: %v", to, err)
		}
	}
	for i := 0; i < len(message); i += 7 {
		changed := bytes.Clone(message)
		changed[i] ^= 1
		if _, err := Open(changed, []string{key.Public()}, "acme", "office"); !errors.Is(err, ErrForged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	// The same key has signed something else.
	bare := append(ed25519.Sign(key.private, message[ed25519.SignatureSize:]), message[ed25519.SignatureSize:]...)
	if _, err := Open(bare, []string{key.Public()}, "acme", "office"); !errors.Is(err, ErrForged) {
		t.Errorf("a signature of something else: %v", err)
	}
}

// seal signs any text.
func seal(t testing.TB, key Key, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return append(ed25519.Sign(key.private, append([]byte(context), b.Bytes()...)), b.Bytes()...)
}

// TestNewerHub: grants that cannot be read are left out, which allows less, and
// unknown members are ignored.
func TestNewerHub(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	d, err := Open(seal(t, key, `{"organization":"acme","agent":"office","version":1,"moon":"full","access":[
		{"id":"a","to":"user:ann","targets":["tcp:db:1"],"weather":"fair"},
		{"id":"b","to":"planet:mars","targets":["tcp:db:1"]},
		{"id":"c","to":"user:ann","targets":["udp:db:1"]},
		{"id":"d","to":"user:ann","targets":[]},
		{"id":"e","to":"user:ann"},
		7,
		{"id":"f","to":"user:bob","targets":["kubernetes"]}]}`), []string{key.Public()}, "acme", "office")
	if err != nil || len(d.Access) != 2 || d.Access[0].ID != "a" || d.Access[1].ID != "f" || d.Unknown != 5 {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	open := func(text string) error {
		_, err := Open(seal(t, key, text), []string{key.Public()}, "acme", "office")
		return err
	}
	for name, text := range map[string]string{
		"a bomb":          `{"organization":"acme","agent":"office","x":"` + strings.Repeat("x", maxDocument) + `"}`,
		"too many grants": `{"organization":"acme","agent":"office","access":[` + strings.Repeat("1,", access.MaxGrants) + `1]}`,
		"bad labels":      `{"organization":"acme","agent":"office","labels":{"a b":"c"}}`,
		"no JSON":         `{`,
		"nothing":         ``,
	} {
		if open(text) == nil {
			t.Errorf("%s is taken", name)
		}
	}
	d := sample()
	for i := range 5 {
		d.Limits = append(d.Limits, fmt.Appendf(nil, "%d", i)...)
	}
	if _, err := key.Seal(d); err == nil {
		t.Error("limits that are no JSON are sealed")
	}
}

// TestFullOrganization seals a part of the most that an organization can have, of names
// that hardly compress: the whole fits into a message.
func TestFullOrganization(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	d := sample()
	d.Access, d.Limits = nil, nil
	const part = 5
	for i := range access.MaxGrants / part {
		g := access.Grant{
			ID: fmt.Sprintf("g-%05d", i), To: policy.Whom{Kind: identity.KindUser, Name: noise(i, 80)},
			Targets: []policy.Rule{policy.MustRule(fmt.Sprintf("tcp:%s.example.org:5432", strings.Trim(noise(i+1e6, 20), "-")))}, Expires: time.Unix(2e9+int64(i), 0).UTC(),
		}
		d.Access = append(d.Access, g)
	}
	begin := time.Now()
	message, err := key.Seal(d)
	if err != nil {
		t.Fatal(err)
	}
	sealed := time.Since(begin)
	back, err := Open(message, []string{key.Public()}, "acme", "office")
	if err != nil || len(back.Access) != len(d.Access) || back.Unknown != 0 {
		t.Fatalf("%d of %d grants came back, %v", len(back.Access), len(d.Access), err)
	}
	if len(message)*part > MaxMessage {
		t.Errorf("%d grants take %d bytes; all would be more than %d", len(d.Access), len(message), MaxMessage)
	}
	t.Logf("%d grants: %d bytes; sealed in %s, both ways %s", len(d.Access), len(message), sealed, time.Since(begin))
}

// noise returns n letters that do not compress well.
func noise(seed, n int) string {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[x%36]
	}
	return string(b)
}

func TestParseSeed(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "QUJD", "not base64!", strings.Repeat("A", 100)} {
		if _, err := ParseSeed([]byte(s)); err == nil || s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	key := newKey(f)
	good, err := key.Seal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[ed25519.SignatureSize:])
	f.Add(seal(f, key, `{"access":[{"id":"a","to":"user:*","targets":["tcp:*:*"],"expires":"2026-01-01T00:00:00Z"}]}`)[ed25519.SignatureSize:])
	f.Add([]byte{31, 139, 8})
	f.Fuzz(func(t *testing.T, packed []byte) {
		// What a hub signed may be anything, as its version may be.
		message := append(ed25519.Sign(key.private, append([]byte(context), packed...)), packed...)
		d, err := Open(message, []string{key.Public()}, "acme", "office")
		if err != nil {
			return
		}
		for _, g := range d.Access {
			if err := g.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := key.Seal(d); err != nil {
			t.Fatal(err)
		}
	})
}

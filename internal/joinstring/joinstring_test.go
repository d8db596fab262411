package joinstring

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func sample() String {
	return String{
		ConnectURL: "tls://hub.example.org:4222", Pins: []string{"sha256:" + strings.Repeat("ab", 32)}, Organization: "acme", Agent: "office",
		ID: "0123456789abcdef", Secret: strings.Repeat("5e", 20), Expires: time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func encode(t testing.TB, s String) string {
	t.Helper()
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRoundTrip(t *testing.T) {
	public := sample()
	public.Pins = nil
	for _, want := range []String{sample(), public} {
		text := encode(t, want)
		if !strings.HasPrefix(text, Prefix) || len(text) > 256 {
			t.Errorf("%d bytes: %s", len(text), text)
		}
		// As a mail program breaks it, and an editor saves it.
		for _, copied := range []string{text, "\ufeff" + text + "\r\n", text[:70] + "\n  " + text[70:]} {
			got, err := Parse(copied)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		}
	}
	if got := sample().CAPin(); got != sample().Pins[0] {
		t.Errorf("pin %q", got)
	}
}

// TestNothingIsLostUnseen: whatever prefix is pasted, whichever letter is mistyped,
// it is told.
func TestNothingIsLostUnseen(t *testing.T) {
	text := encode(t, sample())
	for n := range text {
		if _, err := Parse(text[:n]); err == nil {
			t.Fatalf("the first %d bytes pass", n)
		} else if n > len(family) && !errors.Is(err, ErrDamaged) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(len(Prefix), len(text)-1).Draw(t, "place")
		c := rapid.SampledFrom([]byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")).Draw(t, "letter")
		if c == text[i] {
			return
		}
		if _, err := Parse(text[:i] + string(c) + text[i+1:]); !errors.Is(err, ErrDamaged) {
			t.Fatalf("letter %d as %c: %v", i, c, err)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]error{
		"":                         ErrNone,
		"eyJhbGciOiJFZERTQSJ9.x.y": ErrNone,
		"postern-join-2-abcdef":    ErrVersion,
		"postern-join-1":           ErrDamaged,
		Prefix:                     ErrDamaged,
		Prefix + "!!":              ErrDamaged,
		strings.Repeat("a", 9000):  ErrNone,
	} {
		if _, err := Parse(text); !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", text, err, want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*String){
		"ID":           func(s *String) { s.ID = "x" },
		"secret":       func(s *String) { s.Secret = "00" },
		"pin":          func(s *String) { s.Pins = []string{"sha256:00"} },
		"many pins":    func(s *String) { s.Pins = make([]string, 5) },
		"URL":          func(s *String) { s.ConnectURL = "" },
		"URL of lines": func(s *String) { s.ConnectURL = "tls://a\nb" },
		"organization": func(s *String) { s.Organization = "A" },
		"agent":        func(s *String) { s.Agent = strings.Repeat("a", 64) },
	} {
		s := sample()
		change(&s)
		if text, err := s.Encode(); err == nil {
			t.Errorf("%s: %s", name, text)
		}
	}
}

func TestNewSecret(t *testing.T) {
	s := sample()
	s.ID, s.Secret = NewSecret()
	again := s
	again.ID, again.Secret = NewSecret()
	if encode(t, s) == encode(t, again) || s.ID == again.ID || s.Secret == again.Secret {
		t.Error("drawn twice")
	}
}

func TestMembership(t *testing.T) {
	good := `{"connectUrl":"tls://hub","organization":"acme","agentId":"office","joinId":"1","keyId":"` + strings.Repeat("ab", 32) + `"}`
	if m, err := ParseMembership([]byte(good)); err != nil || m.Agent != "office" {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{
		"", "[]", "{}", strings.Replace(good, "tls://hub", "", 1), strings.Replace(good, "office", "Office", 1),
		strings.Replace(good, "abab", "zz", 1), good + strings.Repeat(" ", maxMembership),
	} {
		if _, err := ParseMembership([]byte(bad)); err == nil {
			t.Errorf("%.60q passes", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	text := encode(f, sample())
	f.Add(text)
	f.Add(text[:40])
	f.Add(Prefix)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
		if back, err := Parse(again); err != nil || !cmp.Equal(s, back) {
			t.Fatalf("%+v became %+v, %v", s, back, err)
		}
	})
}

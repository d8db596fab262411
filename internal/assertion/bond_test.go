package assertion

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"
)

// channel is an encrypted connection that has a secret.
type channel struct {
	secret string
	kept   any
}

// Export implements Channel.
func (c *channel) Export(label string, n int) ([]byte, error) {
	if c.secret == "" {
		return nil, errors.New("no TLS")
	}
	var all []byte
	for len(all) < n {
		sum := sha256.Sum256(append(all, c.secret+label...))
		all = append(all, sum[:]...)
	}
	return all[:n], nil
}

// Companion implements Channel.
func (c *channel) Companion(make func() any) any {
	if c.kept == nil {
		c.kept = make()
	}
	return c.kept
}

// ends returns the bonds of the two ends of a connection.
func ends(secret string) (hub, agent *Bond) {
	return BondOf(&channel{secret: secret}), BondOf(&channel{secret: secret})
}

// over returns the text of an assertion at a time for a connection.
func (h hub) over(t testing.TB, b *Bond, at time.Time) string {
	t.Helper()
	c := sample()
	c.IssuedAt = at
	w, err := h.signer.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	text, err := w.Over(b)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

const sampleURI = "/api/v1/pods?limit=500"

// agree sends one assertion, and has the hub hear the answer.
func agree(t testing.TB, h hub, v *Verifier, mine, its *Bond, at time.Time) (text string) {
	t.Helper()
	text = h.over(t, mine, at)
	_, answer, err := v.VerifyOver(its, text, "GET", sampleURI, at)
	if err != nil {
		t.Fatal(err)
	}
	if answer != "" {
		mine.Heard([]string{answer})
	}
	return text
}

func isBound(text string) bool { return strings.HasPrefix(text, boundPrefix) }

func TestBond(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	v := h.verifier()
	mine, its := ends("one")
	if text := agree(t, h, v, mine, its, now()); isBound(text) {
		t.Fatal("the first assertion is not signed")
	}
	text := agree(t, h, v, mine, its, now())
	if !isBound(text) {
		t.Fatal("the second assertion is signed again")
	}
	if _, _, err := v.VerifyOver(its, text, "GET", sampleURI, now()); !errors.Is(err, ErrReplayed) {
		t.Errorf("used twice: %v", err)
	}
	if _, err := v.Verify(h.over(t, mine, now()), "GET", sampleURI, now()); !errors.Is(err, ErrBond) {
		t.Errorf("over a connection that has no bond: %v", err)
	}
	if text := agree(t, h, v, mine, its, now().Add(bondRenew)); isBound(text) {
		t.Error("it is not begun anew")
	}
	if text := agree(t, h, v, mine, its, now().Add(2*bondRenew-time.Second)); !isBound(text) {
		t.Error("it does not hold again")
	}
	mine.Heard([]string{"of somebody else", bondNone})
	if text := agree(t, h, v, mine, its, now()); isBound(text) {
		t.Error("it holds though the agent denies it")
	}
}

// TestBondRefused holds what is bound to the same rules as what is signed.
func TestBondRefused(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	v := h.verifier()
	mine, its := ends("one")
	agree(t, h, v, mine, its, now())
	_, other := ends("other")
	for name, c := range map[string]struct {
		bond        *Bond
		method, uri string
		at          time.Time
		change      func(string) string
		want        error
	}{
		"another connection":  {bond: other, want: ErrBond},
		"no bond":             {want: ErrBond},
		"after its time":      {bond: its, at: now().Add(bondLife), want: ErrBond},
		"late":                {bond: its, at: now().Add(Life + Skew + time.Second), want: ErrLate},
		"early":               {bond: its, at: now().Add(-Skew - time.Second), want: ErrEarly},
		"another method":      {bond: its, method: "DELETE", want: ErrRequest},
		"another URI":         {bond: its, uri: "/api/v1/secrets", want: ErrRequest},
		"another payload":     {bond: its, change: func(s string) string { return boundPrefix + "e30" + s[strings.LastIndex(s, "."):] }, want: ErrForged},
		"without a code":      {bond: its, change: func(s string) string { return s[:strings.LastIndex(s, ".")] }, want: ErrMalformed},
		"with an empty code":  {bond: its, change: func(s string) string { return s[:strings.LastIndex(s, ".")+1] }, want: ErrMalformed},
		"half a code":         {bond: its, change: func(s string) string { return s[:len(s)-20] }, want: ErrMalformed},
		"more than a code":    {bond: its, change: func(s string) string { return s + "AAAA" }, want: ErrMalformed},
		"nothing":             {bond: its, change: func(string) string { return boundPrefix }, want: ErrMalformed},
		"nothing with a code": {bond: its, change: func(string) string { return boundPrefix + "." + strings.Repeat("A", 43) }, want: ErrForged},
	} {
		text := h.over(t, mine, now())
		if !isBound(text) {
			t.Fatal("it does not hold")
		}
		if c.change != nil {
			text = c.change(text)
		}
		if c.method == "" {
			c.method = "GET"
		}
		if c.uri == "" {
			c.uri = sampleURI
		}
		if c.at.IsZero() {
			c.at = now()
		}
		if _, _, err := v.VerifyOver(c.bond, text, c.method, c.uri, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBondBegins holds that only a good signature which names a connection begins its
// bond.
func TestBondBegins(t *testing.T) {
	t.Parallel()
	h, stranger := newHub(t), newHub(t)
	v := h.verifier()
	thief, its := ends("the thief's own connection") // whose certificate is good
	elsewhere, _ := ends("the hub's connection")
	for name, text := range map[string]string{
		"it names no bond":     h.sign(t, sample()),
		"it names another":     h.over(t, elsewhere, now()),
		"a stranger signed it": stranger.over(t, thief, now()),
		"it is late":           h.over(t, thief, now().Add(-Life-Skew-time.Second)),
	} {
		if _, answer, _ := v.VerifyOver(its, text, "GET", sampleURI, now()); answer != "" {
			t.Errorf("%s: answered %q", name, answer)
		}
	}
	thief.Heard([]string{its.token}) // it knows the key, and says so itself
	text := h.over(t, thief, now())
	if !isBound(text) {
		t.Fatal("it does not hold")
	}
	if _, answer, err := v.VerifyOver(its, text, "GET", sampleURI, now()); !errors.Is(err, ErrBond) || answer != bondNone {
		t.Errorf("answered %q, %v", answer, err)
	}
}

// TestBondEndsWithKey holds that a bond does not outlive the key that began it.
func TestBondEndsWithKey(t *testing.T) {
	t.Parallel()
	h, next := newHub(t), newHub(t)
	keys := []string{h.public, next.public}
	v := NewVerifier(func() []string { return keys }, "acme", "office")
	mine, its := ends("one")
	agree(t, h, v, mine, its, now())
	agree(t, h, v, mine, its, now())
	keys = keys[1:]
	_, answer, err := v.VerifyOver(its, h.over(t, mine, now()), "GET", sampleURI, now())
	if !errors.Is(err, ErrBond) || answer != bondNone {
		t.Errorf("answered %q, %v", answer, err)
	}
	mine.Heard([]string{answer})
	if _, _, err := v.VerifyOver(its, h.over(t, mine, now()), "GET", sampleURI, now()); !errors.Is(err, ErrForged) {
		t.Errorf("signed with the old key: %v", err)
	}
	agree(t, next, v, mine, its, now())
	if text := agree(t, next, v, mine, its, now()); !isBound(text) {
		t.Error("the new key begins nothing")
	}
}

// TestNoBond holds that a connection without TLS, or with an agent of an older version,
// has signatures.
func TestNoBond(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	v := h.verifier()
	if b := BondOf(&channel{}); b != nil {
		t.Error("a bond without keys")
	}
	mine, _ := ends("one")
	for range 3 {
		if text := agree(t, h, v, mine, nil, now()); isBound(text) {
			t.Error("bound though the agent did not agree")
		}
	}
	(*Bond)(nil).Heard([]string{bondNone})
}

func FuzzBound(f *testing.F) {
	h := newHub(f)
	v := h.verifier()
	mine, its := ends("one")
	agree(f, h, v, mine, its, now())
	c := sample()
	c.ID = "1" // the same in all processes that take part
	w, err := h.signer.Prepare(c)
	if err != nil {
		f.Fatal(err)
	}
	good, err := w.Over(mine)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[len(boundPrefix):])
	f.Add(".")
	f.Add("e30." + strings.Repeat("A", 43))
	f.Fuzz(func(t *testing.T, rest string) {
		text := boundPrefix + rest
		c, answer, err := v.VerifyOver(its, text, "GET", sampleURI, now())
		if err == nil && !strings.HasPrefix(text, good[:strings.LastIndex(good, ".")]) {
			t.Errorf("believed %q: %+v", text, c)
		}
		if answer != "" {
			t.Errorf("answered %q", answer)
		}
	})
}

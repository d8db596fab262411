package hub

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// Bounds of the assertions that are remembered so that none is used twice, in all,
// by organization and by key. Only holders of registered keys can fill them, and
// those of one organization not for the others.
const (
	maxUsed       = 1 << 17
	maxUsedPerOrg = 1 << 15
	maxUsedPerKey = 1 << 13
)

// Assert returns which agent signed an assertion for a request with the given
// digest. Errors are *wire.Failure as those of Authenticate. An assertion is good
// once.
func (a *Authenticator) Assert(ctx context.Context, token, digest string) (Caller, error) {
	now := a.now()
	refuse := func(format string, args ...any) (Caller, error) {
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, format, args...)
	}
	assertion, err := identity.ParseAssertion(token)
	if err != nil {
		return refuse("the assertion is not good: %s", err)
	}
	c := assertion.Claims
	key, err := a.registry.FindAgentKey(ctx, c.Organization, c.Agent, assertion.KeyID)
	switch {
	case errors.Is(err, registry.ErrRevoked):
		// The same words whether agent or key are unknown: who asks has proved nothing.
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "agent %s of organization %s has no key %s",
			c.Agent, c.Organization, assertion.KeyID).WithCause(err).
			WithHint("it was removed, or never added; add it with: postern agent key add %s -a %s --public-key FILE", c.Agent, c.Organization)
	case err != nil:
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeInternal, "the hub could not look the key up").WithCause(err)
	}
	if err := assertion.Verify(key, a.state.TrustDomain(), now); err != nil {
		f := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the assertion is not good: %s", err).WithCause(err)
		switch {
		case errors.Is(err, identity.ErrTokenSignature):
			f.Text = "the assertion was not signed with the key that it names"
		case errors.Is(err, identity.ErrTokenExpired), errors.Is(err, identity.ErrAssertionEarly):
			f.Text += fmt.Sprintf("; by the hub's clock it is %s", now.UTC().Format(time.RFC3339))
			f.Hint = "set the clock of this machine, for instance with NTP"
		}
		return Caller{}, f
	}
	if subtle.ConstantTimeCompare([]byte(c.Request), []byte(digest)) != 1 {
		return refuse("the assertion was made for another request than this one")
	}
	switch err := a.used.use(c.Organization, assertion.KeyID, c.ID, assertion.Forgettable(), now); {
	case errors.Is(err, errUsed):
		return refuse("the assertion has been used already")
	case err != nil:
		return Caller{}, wire.Fail(wire.LegHub, wire.CodeOverloaded, "too many exchanges with key %s, or with others of organization %s, in the last minutes",
			assertion.KeyID, c.Organization)
	}
	return Caller{
		Principal: identity.Principal{Kind: identity.KindAgent, Name: c.Agent}, Organization: c.Organization, Item: assertion.KeyID,
	}, nil
}

var (
	errUsed    = errors.New("used already")
	errTooMany = errors.New("too many")
)

// usedAssertions remembers which assertions were used, until their age alone
// refuses them. It does not outlive the process, and need not: an assertion holds
// the digest of its request, so a second use gives a certificate for the same
// keys to nobody else. Safe for concurrent use.
type usedAssertions struct {
	mu    sync.Mutex
	until map[usedAssertion]time.Time
	byKey map[string]int
	byOrg map[string]int
	swept time.Time
}

type usedAssertion struct{ org, key, id string }

func newUsedAssertions() *usedAssertions {
	return &usedAssertions{until: make(map[usedAssertion]time.Time), byKey: make(map[string]int), byOrg: make(map[string]int)}
}

// use notes a use: nil for the first, errUsed for another, errTooMany when a
// bound is reached.
func (u *usedAssertions) use(org, key, id string, until, now time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now.Sub(u.swept) > time.Second {
		u.swept = now
		for one, end := range u.until {
			if now.After(end) {
				delete(u.until, one)
				if u.byKey[one.key]--; u.byKey[one.key] == 0 {
					delete(u.byKey, one.key)
				}
				if u.byOrg[one.org]--; u.byOrg[one.org] == 0 {
					delete(u.byOrg, one.org)
				}
			}
		}
	}
	one := usedAssertion{org, key, id}
	if _, ok := u.until[one]; ok {
		return errUsed
	}
	if len(u.until) >= maxUsed || u.byOrg[org] >= maxUsedPerOrg || u.byKey[key] >= maxUsedPerKey {
		return errTooMany
	}
	u.until[one] = until
	u.byKey[key]++
	u.byOrg[org]++
	return nil
}

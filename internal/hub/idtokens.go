package hub

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/wire"
)

// idTokens knows which ID tokens of an issuer are good, and whose they are. It is safe
// for concurrent use.
type idTokens struct {
	rules    config.TokenRules
	verifier *oidc.Verifier
	issuer   oidc.Issuer // but for its CA
	ca       *issuerCA   // nil: the system's
	now      func() time.Time
}

// newIDTokens returns the idTokens of some rules. The issuer is not asked before
// somebody shows a token.
func newIDTokens(rules config.TokenRules, o SignInOptions) (*idTokens, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &idTokens{
		rules: rules, verifier: o.Verifier, now: o.Now,
		issuer: oidc.Issuer{URL: rules.IssuerURL, Audiences: []string{rules.ClientID}, Algorithms: rules.Algorithms},
	}
	if err := t.issuer.Validate(); err != nil {
		return nil, err
	}
	switch {
	case rules.CAFile != "":
		t.ca = newIssuerCA(func(context.Context) ([]byte, error) { return os.ReadFile(rules.CAFile) }, o)
		if _, err := t.ca.pem(context.Background()); err != nil { // a mistake in the settings, most likely
			return nil, err
		}
	case rules.CAConfigMap != "":
		namespace, name, key, err := config.ParseConfigMap(rules.CAConfigMap)
		if err != nil {
			return nil, err
		}
		t.ca = newIssuerCA(func(ctx context.Context) ([]byte, error) { return o.Cluster.ConfigMap(ctx, namespace, name, key) }, o)
	}
	return t, nil
}

// current returns the issuer with the CA of the moment.
func (t *idTokens) current(ctx context.Context) (oidc.Issuer, error) {
	i := t.issuer
	if t.ca == nil {
		return i, nil
	}
	var err error
	i.CA, err = t.ca.pem(ctx)
	return i, err
}

// claims returns what an ID token says that is good for this hub, whenever it was
// made. Errors are *wire.Failure.
func (t *idTokens) claims(ctx context.Context, token string) (*oidc.Claims, error) {
	issuer, err := t.current(ctx)
	if err != nil {
		return nil, oidc.Failure(err, t.now())
	}
	c, err := t.verifier.Verify(ctx, issuer, token)
	if err != nil {
		return nil, oidc.Failure(err, t.now())
	}
	for _, required := range t.rules.RequiredClaims {
		name, value, _ := strings.Cut(required, "=")
		if !c.Match(value, name) {
			return nil, wire.Fail(wire.LegHub, wire.CodeDenied, "the ID token does not have the claim %s that this hub requires", required)
		}
	}
	return c, nil
}

// person is who an ID token is of.
type person struct {
	user     string
	groups   []string
	reserved []string // further groups, with reserved names
	subject  string   // at the provider
}

// personOf reads user and groups from the claims of a good ID token.
func (t *idTokens) personOf(c *oidc.Claims) (person, error) {
	p := person{subject: c.Subject}
	var err error
	if p.user, err = t.userOf(c); err != nil {
		return person{}, err
	}
	for _, g := range c.Strings(t.rules.GroupsClaim) {
		g = prefixed(t.rules.GroupsPrefix, g)
		if t.reserved(g) != "" {
			p.reserved = append(p.reserved, g)
			continue
		}
		if err := (identity.Principal{Kind: identity.KindGroup, Name: g}).Validate(); err != nil {
			return person{}, notLetIn("the %s", err)
		}
		p.groups = append(p.groups, g)
	}
	slices.Sort(p.groups)
	p.groups = slices.Compact(p.groups)
	if len(p.groups) > identity.MaxGroups {
		return person{}, notLetIn("user %s is in %d groups, and %d are possible", p.user, len(p.groups), identity.MaxGroups).
			WithHint("have the provider put fewer groups into the tokens of this client, or into another claim: --oidc-groups-claim")
	}
	return p, nil
}

func (t *idTokens) userOf(c *oidc.Claims) (string, error) {
	claim := t.rules.UsernameClaim
	switch {
	case claim == "" && c.String("email") != "" && c.Bool("email_verified"):
		claim = "email"
	case claim == "":
		claim = "sub"
		if strings.Contains(c.Subject, "@") {
			return "", notLetIn("the provider has not verified the user's email address, and its subject looks like one")
		}
	case claim == "email" && c.Lookup("email_verified") != nil && !c.Bool("email_verified"):
		return "", notLetIn("the provider has not verified the user's email address")
	}
	user := c.String(claim)
	if user == "" {
		return "", notLetIn("the ID token has no claim %q to name the user", claim)
	}
	user = prefixed(t.rules.UsernamePrefix, user)
	if err := (identity.Principal{Kind: identity.KindUser, Name: user}).Validate(); err != nil {
		return "", notLetIn("the %s", err)
	}
	if prefix := t.reserved(user); prefix != "" {
		return "", nameReserved(user, prefix)
	}
	return user, nil
}

// reserved returns the reserved beginning of a name, or "".
func (t *idTokens) reserved(name string) string {
	for _, prefix := range t.rules.ReservedPrefixes {
		if prefix != "" && strings.HasPrefix(name, prefix) {
			return prefix
		}
	}
	return ""
}

func notLetIn(format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegHub, wire.CodeDenied, format, args...)
}

func nameReserved(name, prefix string) *wire.Failure {
	return notLetIn("the name %q begins with %q, which is reserved", name, prefix)
}

func prefixed(prefix, name string) string {
	if prefix == "-" {
		return name
	}
	return prefix + name
}

const (
	lookCA  = time.Minute     // between two looks at an issuer's CA
	retryCA = 3 * time.Second // the same, where there is none yet
	readCA  = 5 * time.Second // for one look
)

// issuerCA is the CA certificate of an issuer, which may change. While it cannot be
// read, the one before is good.
type issuerCA struct {
	read func(ctx context.Context) ([]byte, error)
	now  func() time.Time
	log  *slog.Logger
	busy chan struct{} // holds one while somebody reads

	mu     sync.Mutex
	last   []byte
	looked time.Time
	err    error // of the last look
}

func newIssuerCA(read func(ctx context.Context) ([]byte, error), o SignInOptions) *issuerCA {
	return &issuerCA{read: read, now: o.Now, log: o.Log, busy: make(chan struct{}, 1)}
}

// pem returns the certificate. Errors are oidc.ErrUnavailable with details.
func (a *issuerCA) pem(ctx context.Context) ([]byte, error) {
	if a.fresh() {
		return a.answer()
	}
	select {
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: its CA certificate: %w", oidc.ErrUnavailable, ctx.Err())
	}
	if a.fresh() { // somebody else was quicker
		return a.answer()
	}
	// It is read for all who wait, so it does not end with who happened to be the first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readCA)
	defer cancel()
	pem, err := a.read(ctx)
	if err == nil {
		err = oidc.ValidateCA(pem)
	}
	a.keep(pem, err)
	return a.answer()
}

// fresh reports whether the last look was just now.
func (a *issuerCA) fresh() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	limit := lookCA
	if a.last == nil {
		limit = retryCA
	}
	return a.now().Sub(a.looked) < limit
}

// answer returns the certificate, or why there is none.
func (a *issuerCA) answer() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != nil {
		return a.last, nil
	}
	return nil, fmt.Errorf("%w: its CA certificate cannot be read: %w", oidc.ErrUnavailable, a.err)
}

// keep takes over what a look has found.
func (a *issuerCA) keep(pem []byte, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil && a.err == nil { // told once
		a.log.Error("an issuer's CA certificate cannot be read; one that was read before stays in use", "error", err)
	}
	if err == nil {
		a.last = pem
	}
	a.looked, a.err = a.now(), err
}

package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// How long what an issuer answered is used.
const (
	metadataAge = time.Hour        // then it is asked again; the old one is good while it cannot be
	keysAge     = 15 * time.Minute // the same
	keysKept    = 24 * time.Hour   // after which keys of an issuer that is gone are not good any more
	askEvery    = 3 * time.Second  // at most, however many tokens name an unknown key
)

// Metadata is what an issuer says of itself (OpenID Connect Discovery 1.0 §3).
type Metadata struct {
	Issuer                      string   `json:"issuer"`
	AuthorizationEndpoint       string   `json:"authorization_endpoint"`
	DeviceAuthorizationEndpoint string   `json:"device_authorization_endpoint"` // RFC 8628 §4
	TokenEndpoint               string   `json:"token_endpoint"`
	RevocationEndpoint          string   `json:"revocation_endpoint"` // RFC 7009
	JWKSURI                     string   `json:"jwks_uri"`
	ScopesSupported             []string `json:"scopes_supported"`
	CodeChallengeMethods        []string `json:"code_challenge_methods_supported"`
}

// Options are the parts of a Verifier.
type Options struct {
	Getenv func(string) string // for HTTPS_PROXY and NO_PROXY; nil for none
	Now    func() time.Time    // nil: time.Now

	// Patience bounds one request to an issuer; 0 means some seconds.
	Patience time.Duration
}

// Verifier verifies tokens and remembers issuers. It is safe for concurrent use.
type Verifier struct {
	getenv   func(string) string
	now      func() time.Time
	patience time.Duration

	mu  sync.Mutex
	all map[string]*source
}

// NewVerifier returns a Verifier that knows no issuer yet.
func NewVerifier(o Options) *Verifier {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Getenv == nil {
		o.Getenv = func(string) string { return "" }
	}
	if o.Patience == 0 {
		o.Patience = askTimeout
	}
	return &Verifier{getenv: o.Getenv, now: o.Now, patience: o.Patience, all: make(map[string]*source)}
}

// Close gives idle connections to issuers back.
func (v *Verifier) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.all {
		s.client.CloseIdleConnections()
	}
}

// Discover returns what an issuer says of itself. Errors are ErrUnavailable with
// details.
func (v *Verifier) Discover(ctx context.Context, i Issuer) (Metadata, error) {
	if err := ValidateURL(i.URL); err != nil {
		return Metadata{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s, err := v.source(i)
	if err != nil {
		return Metadata{}, err
	}
	if err := s.lock(ctx); err != nil {
		return Metadata{}, err
	}
	defer s.unlock()
	return s.discover(ctx, v.now())
}

// keys returns an issuer's keys, asked for anew when kid is not among those that
// are known.
func (v *Verifier) keys(ctx context.Context, i Issuer, kid string) ([]jose.JSONWebKey, error) {
	if len(i.Keys) > 0 {
		return parseKeys(i.Keys)
	}
	if err := ValidateURL(i.URL); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s, err := v.source(i)
	if err != nil {
		return nil, err
	}
	if keys, ok := s.known(kid, v.now()); ok {
		return keys, nil
	}
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.unlock()
	return s.fetch(ctx, kid, v.now)
}

// source returns what is remembered of an issuer.
func (v *Verifier) source(i Issuer) (*source, error) {
	name := fmt.Sprintf("%t %s\n%s", i.Public, i.URL, i.CA)
	now := v.now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.all[name]; s != nil {
		s.asked = now
		return s, nil
	}
	client, err := newClient(i, v.getenv)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	client.Timeout = v.patience
	if len(v.all) >= maxIssuers {
		v.forgetOldest()
	}
	s := &source{url: i.URL, client: client, asked: now, busy: make(chan struct{}, 1)}
	v.all[name] = s
	return s, nil
}

// forgetOldest forgets the issuer that was not asked for the longest time; v.mu is
// held.
func (v *Verifier) forgetOldest() {
	oldest := ""
	for name, s := range v.all {
		if oldest == "" || s.asked.Before(v.all[oldest].asked) {
			oldest = name
		}
	}
	v.all[oldest].client.CloseIdleConnections()
	delete(v.all, oldest)
}

// source is one issuer: what it said, and when. Only one request to it is under way
// at a time: busy holds one meanwhile.
type source struct {
	url    string
	client *client
	asked  time.Time // guarded by Verifier.mu
	busy   chan struct{}

	metadata   Metadata // guarded by busy, with its age
	discovered time.Time

	mu      sync.Mutex // guards what follows
	keys    []jose.JSONWebKey
	fetched time.Time
	tried   time.Time
	err     error // of the last try
	asking  bool  // somebody does at the moment
}

func (s *source) lock(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, s.url, ctx.Err())
	}
}

func (s *source) unlock() { <-s.busy }

// known returns the keys if the one that is looked for is there and they are fresh, or
// somebody is asking for fresh ones; or if the issuer was asked just now.
func (s *source) known(kid string, now time.Time) ([]jose.JSONWebKey, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := kid == "" || slices.ContainsFunc(s.keys, func(k jose.JSONWebKey) bool { return k.KeyID == kid })
	fresh := now.Sub(s.fetched) < keysAge
	recent := now.Sub(s.tried) < askEvery
	good := len(s.keys) > 0 && now.Sub(s.fetched) < keysKept
	return s.keys, good && (has && (fresh || s.asking) || recent)
}

// fetch asks for the keys; the caller holds the lock. While the issuer cannot be
// asked, the old ones are good, also for others while it keeps this one waiting.
func (s *source) fetch(ctx context.Context, kid string, clock func() time.Time) ([]jose.JSONWebKey, error) {
	now := clock() // the lock may have taken a while
	if keys, ok := s.known(kid, now); ok {
		return keys, nil // somebody else was quicker
	}
	s.mu.Lock()
	if s.err != nil && now.Sub(s.tried) < askEvery {
		err := s.err
		s.mu.Unlock()
		return nil, err
	}
	s.asking = true
	s.mu.Unlock()
	keys, err := s.ask(ctx, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = false
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil, err // who asked went away: that says nothing of the issuer
	}
	now = clock()
	s.tried, s.err = now, err
	if err == nil {
		s.keys, s.fetched = keys, now
		return keys, nil
	}
	if len(s.keys) > 0 && now.Sub(s.fetched) < keysKept {
		return s.keys, nil
	}
	return nil, err
}

func (s *source) ask(ctx context.Context, now time.Time) ([]jose.JSONWebKey, error) {
	m, err := s.discover(ctx, now)
	if err != nil {
		return nil, err
	}
	b, err := s.client.get(ctx, m.JWKSURI)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, m.JWKSURI, err)
	}
	return keys, nil
}

// discover returns the issuer's metadata; the caller holds the lock.
func (s *source) discover(ctx context.Context, now time.Time) (Metadata, error) {
	if s.metadata.Issuer != "" && now.Sub(s.discovered) < metadataAge {
		return s.metadata, nil
	}
	m, err := s.askMetadata(ctx)
	if err != nil {
		if s.metadata.Issuer != "" {
			return s.metadata, nil // it was good, and keys have their own limit
		}
		return Metadata{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s.metadata, s.discovered = m, now
	return m, nil
}

func (s *source) askMetadata(ctx context.Context) (Metadata, error) {
	where := discoveryURL(s.url)
	b, err := s.client.get(ctx, where)
	if err != nil {
		return Metadata{}, err
	}
	var m Metadata
	if err := json.Unmarshal(b, &m); err != nil {
		return Metadata{}, fmt.Errorf("%s is no discovery document", where)
	}
	if m.Issuer != s.url {
		return Metadata{}, fmt.Errorf("%s is of issuer %.200q and not of %q; they have to be the same to the letter", where, m.Issuer, s.url)
	}
	for _, endpoint := range []struct {
		name, url string
		need      bool
	}{
		{"jwks_uri", m.JWKSURI, true},
		{"authorization_endpoint", m.AuthorizationEndpoint, false},
		{"token_endpoint", m.TokenEndpoint, false},
		{"device_authorization_endpoint", m.DeviceAuthorizationEndpoint, false},
		{"revocation_endpoint", m.RevocationEndpoint, false},
	} {
		if (endpoint.need || endpoint.url != "") && !isWebURL(endpoint.url, strings.HasPrefix(s.url, "http:")) {
			return Metadata{}, fmt.Errorf("%s has a %s that is not https: %.200q", where, endpoint.name, endpoint.url)
		}
	}
	return m, nil
}

// parseKeys reads a JWK set. Keys of kinds that we do not know are left out, as RFC
// 7517 §5 wants it.
func parseKeys(b []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("this is no JWK set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("JWK set has %d keys, at most %d are possible", len(set.Keys), maxKeys)
	}
	keys := make([]jose.JSONWebKey, 0, len(set.Keys))
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) == nil && k.IsPublic() {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("JWK set holds no public key that can be used")
	}
	return keys, nil
}

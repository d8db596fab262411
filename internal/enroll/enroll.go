// Package enroll exchanges a party's long-lived secret for short-lived
// credentials at the hub's token endpoint, and renews them well before they
// expire. Agents, proxies and commands hold one Session each per organization.
package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// exchangeTimeout bounds one exchange with the hub.
const exchangeTimeout = 30 * time.Second

// Hub is how to reach the hub's HTTPS API; *uplink.Dialer is one.
type Hub interface {
	HTTPClient() *http.Client
	BaseURL() string // https://HOST:PORT without a slash at its end
}

// Request says who wants credentials, and on what ground.
type Request struct {
	Organization string
	Role         identity.Role // RoleAgent or RoleProxy
	Name         string        // the agent's ID or the proxy's name
	Replica      string        // unique among the processes that share Name
	Version      string        // of this program
	Secret       Secret
	Key          *KeyPair // instead of Secret, for an agent that is registered with keys

	// NewBusKey makes the key pair for the bus: its public text and its seed.
	// bus.NewUserKey is one. It is called once in a Session's life.
	NewBusKey func() (public string, seed []byte, err error)
}

// Grant is what one exchange gave. It is immutable.
type Grant struct {
	Credentials   *identity.Credentials
	BusToken      string // the user JWT for the bus
	BusKey        []byte // the seed that belongs to it, the same for all grants of a Session
	Configuration api.Configuration
	Authorities   []byte    // the hub's, in PEM
	Item          string    // ID of the token, key or session that was shown, as the hub says; empty if it does not
	Issued        time.Time // by our clock
	Expires       time.Time // by our clock
}

// Session keeps a party's credentials fresh. Its methods are safe for concurrent
// use.
type Session struct {
	hub Hub
	req Request
	log *slog.Logger

	grant   atomic.Pointer[Grant]
	refused atomic.Bool   // the newest grant was refused: see Refused
	hurry   chan struct{} // holds one when Run is to renew now

	mu        sync.Mutex // guards what follows; held during an exchange
	busPublic string
	busSeed   []byte
	clockTold bool

	hooksMu sync.Mutex
	hooks   []func(*Grant)
}

// New returns a Session that holds no credentials yet. A nil log means none.
func New(hub Hub, req Request, log *slog.Logger) *Session {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Session{hub: hub, req: req, log: log, hurry: make(chan struct{}, 1)}
}

// Grant returns the newest grant, or nil before the first. It may have expired
// when the hub could not be reached for long.
func (s *Session) Grant() *Grant { return s.grant.Load() }

// Credentials returns the newest credentials, or nil before the first grant.
func (s *Session) Credentials() *identity.Credentials {
	if g := s.grant.Load(); g != nil {
		return g.Credentials
	}
	return nil
}

// Refused says that somebody who matters did not accept the newest credentials,
// though they have not expired: they were revoked, most likely. Run then renews
// at once, and takes a refusal by the hub for final. It does nothing without Run.
func (s *Session) Refused() {
	s.refused.Store(true)
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}

// OnRenew has f called after each exchange with what it gave. f is called from
// the goroutine of Start or Run and must not wait for the Session.
func (s *Session) OnRenew(f func(*Grant)) {
	s.hooksMu.Lock()
	defer s.hooksMu.Unlock()
	s.hooks = append(s.hooks, f)
}

// Start makes one attempt to get credentials. Its errors are *wire.Failure;
// Permanent tells those that a person has to mend from those where Run may
// succeed later.
func (s *Session) Start(ctx context.Context) error { return s.exchange(ctx) }

// Permanent reports whether an error of a Session will stay until a person does
// something here or at the hub: the token is refused or unreadable, the request
// wrong, or what answers is not the hub that is trusted. A wrong clock is not
// permanent, because a machine that just booted may still set it; nor is that the
// party is revoked by name, because it may be restored where nobody can start it again.
func Permanent(err error) bool {
	var clock *ClockError
	var invalid x509.CertificateInvalidError
	var f *wire.Failure
	if errors.As(err, &clock) || !errors.As(err, &f) || api.IsPartyRevoked(err) {
		return false
	}
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return false // a matter of clocks, or of a certificate that is about to be renewed
	}
	switch f.Code {
	case wire.CodeUnauthenticated, wire.CodeDenied, wire.CodeBadRequest:
		return f.Leg == wire.LegHub
	case wire.CodeWrongPeer:
		return f.Leg == wire.LegTLS
	default:
		return false
	}
}

// exchange gets new credentials, stores them and tells the hooks.
func (s *Session) exchange(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	g, err := s.newGrant(ctx)
	if err != nil {
		return err
	}
	first := s.grant.Swap(g) == nil
	s.refused.Store(false)
	level := slog.LevelDebug
	if first {
		level = slog.LevelInfo
	}
	s.log.Log(ctx, level, "credentials received", "id", g.Credentials.ID.String(), "expires", g.Expires)
	s.hooksMu.Lock()
	hooks := s.hooks
	s.hooksMu.Unlock()
	for _, f := range hooks {
		f(g)
	}
	return nil
}

func (s *Session) newGrant(ctx context.Context) (*Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	req := api.TokenRequest{
		SubjectTokenType: api.TokenTypeJWT, Organization: s.req.Organization, Role: string(s.req.Role), Name: s.req.Name,
		Replica: s.req.Replica, Version: s.req.Version,
	}
	var err error
	if s.req.Key == nil {
		if req.SubjectToken, req.SubjectTokenType, err = s.req.Secret.SubjectToken(ctx); err != nil {
			return nil, err
		}
	}
	if s.busPublic == "" {
		if s.busPublic, s.busSeed, err = s.req.NewBusKey(); err != nil {
			return nil, internal("make bus key", err)
		}
	}
	// A key for each certificate: it never outlives the hour.
	key, err := identity.NewKey()
	if err != nil {
		return nil, internal("make key", err)
	}
	csr, err := identity.NewRequest(key)
	if err != nil {
		return nil, internal("make certificate request", err)
	}
	req.CSR, req.BusKey = string(csr), s.busPublic
	if c := s.Credentials(); c != nil {
		req.Previous = identity.Serial(c.Certificate.Leaf)
	}
	client := &api.Client{BaseURL: s.hub.BaseURL(), HTTP: s.hub.HTTPClient()}
	if s.req.Key != nil {
		if err := s.req.Key.assert(ctx, client, &req); err != nil {
			return nil, err
		}
	}
	sent := time.Now()
	res, err := client.Exchange(ctx, req)
	received := time.Now()
	if err != nil {
		return nil, blameClock(err, sent, received)
	}
	creds, err := identity.NewCredentials([]byte(res.AccessToken), key, []byte(res.CABundle))
	if err != nil {
		return nil, badAnswer(err)
	}
	if err := s.checkCredentials(creds, res); err != nil {
		return nil, badAnswer(err)
	}
	clock := compareClocks(res.HubTime, sent, received)
	if err := checkValidity(creds, clock, received); err != nil {
		return nil, err
	}
	if clock != nil && !s.clockTold {
		s.clockTold = true
		s.log.Warn("clocks differ; set them, for instance with NTP", "detail", clock.Error())
	}
	return &Grant{
		Credentials: creds, BusToken: res.BusToken, BusKey: s.busSeed, Configuration: res.Configuration, Authorities: []byte(res.CABundle), Item: res.Item,
		Issued: received, Expires: sent.Add(time.Duration(res.ExpiresIn) * time.Second),
	}, nil
}

// checkCredentials checks that the hub gave us what we asked for.
func (s *Session) checkCredentials(c *identity.Credentials, res *api.TokenResponse) error {
	want := identity.ID{
		TrustDomain: c.ID.TrustDomain, Organization: s.req.Organization, Role: s.req.Role, Name: s.req.Name, Replica: s.req.Replica,
	}
	if c.ID != want {
		return fmt.Errorf("certificate is for %s and not for %s", c.ID, want)
	}
	if _, err := c.Certificate.Leaf.Verify(x509.VerifyOptions{
		Roots: c.Roots, CurrentTime: c.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("certificate does not fit the CA bundle: %w", err)
	}
	if res.BusToken == "" {
		return errors.New("answer holds no bus token")
	}
	if life := time.Duration(res.ExpiresIn) * time.Second; life <= 0 || life > c.NotAfter.Sub(c.NotBefore) {
		return fmt.Errorf("credentials are said to expire after %s", life)
	}
	return nil
}

func badAnswer(err error) error {
	return wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub's answer cannot be used: %s", err).WithCause(err).
		WithHint("check that the hub's version fits this program's")
}

func internal(what string, err error) error {
	return wire.Fail(wire.LegHub, wire.CodeInternal, "%s: %s", what, err).WithCause(err)
}

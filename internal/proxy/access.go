package proxy

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Identity is who a client proved to be.
type Identity struct {
	Organization string
	Principal    identity.Principal // the zero one on a listener that asks for no credentials
	Groups       []string           // of a user
	Item         string             // what it showed, such as a token's access ID; empty where that is not known
}

// Login is what a client presented.
type Login struct {
	User, Password string
	Given          bool // false: the client sent no credentials
}

// VerifyFunc checks a secret, such as a robot token, for an organization. It
// returns a *wire.Failure with LegClient and CodeUnauthenticated if the secret
// is wrong, expired or revoked; any other error means that it could not tell.
type VerifyFunc func(ctx context.Context, organization, secret string) (Identity, error)

// Bounds of the memory of recent logins. It is short, since a revoked token opens
// streams for so long.
const (
	rememberFor = 3 * time.Second
	rememberMax = 1024
)

// maxVerifying bounds how many secrets are being checked at once, so that
// guessing does not take the processor away from everybody else.
const maxVerifying = 4

// AccessConfig says who may use a listener.
type AccessConfig struct {
	Users   *Users     // static credentials; nil for none
	Verify  VerifyFunc // checks the passwords of users that Users does not have; nil for none
	Require bool       // ask for credentials on loopback too; always so when there are Users
}

// Access decides who may use the listeners it is made for. It is safe for
// concurrent use.
//
// A listener on loopback asks for no credentials unless some are set: there a
// user name alone routes, and the password is not looked at. Any other listener
// must have credentials.
type Access struct {
	config AccessConfig
	key    [32]byte // of the digests in recent: a dump of them helps nobody
	slots  chan struct{}
	mu     sync.Mutex
	users  *Users // in the place of config's, which may have changed since
	live   map[*userEntry]map[*guestStream]struct{}
	recent map[[sha256.Size]byte]remembered
	now    func() time.Time
}

type remembered struct {
	id      Identity
	by      *userEntry // that it was checked against; nil for a token
	expires time.Time
}

// NewAccess returns the access control for a configuration.
func NewAccess(config AccessConfig) (*Access, error) {
	if config.Require && config.Users == nil && config.Verify == nil {
		return nil, errors.New("set up access: credentials are required but none are configured")
	}
	a := &Access{
		config: config,
		slots:  make(chan struct{}, maxVerifying),
		users:  config.Users,
		live:   make(map[*userEntry]map[*guestStream]struct{}),
		recent: make(map[[sha256.Size]byte]remembered),
		now:    time.Now,
	}
	_, _ = rand.Read(a.key[:]) // never fails
	return a, nil
}

// Listen says whether a listener at addr may be opened. A nil Access has no
// credentials.
func (a *Access) Listen(addr net.Addr) error {
	if isLoopback(addr) || a != nil && (a.config.Users != nil || a.config.Verify != nil) {
		return nil
	}
	return fmt.Errorf("listen on %s: other machines can reach this address, so clients must show credentials; "+
		"configure them, or listen on 127.0.0.1 or [::1]", addr)
}

// requires reports whether clients of a listener at addr must log in.
func (a *Access) requires(addr net.Addr) bool {
	if a == nil {
		return false // Listen let loopback only pass
	}
	return !isLoopback(addr) || a.config.Require || a.config.Users != nil
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// grant is what a login is worth: who it is, and the agent that the user name
// chose or, if only is set, is bound to.
type grant struct {
	id     Identity
	choice AgentRef
	only   bool
	by     *userEntry // of the credentials file; nil for any other login
}

// login checks what a client presented. Errors are *wire.Failure.
func (a *Access) login(ctx context.Context, required bool, l Login, r Router) (grant, error) {
	if !required {
		choice, err := r.User(l.User)
		return grant{id: Identity{Organization: choice.Organization}, choice: choice}, err
	}
	if !l.Given {
		return grant{}, unauthenticated("this proxy asks for a user name and password")
	}
	if users := a.current(); users != nil {
		if entries := users.find(l.User); len(entries) > 0 {
			g, err := a.static(ctx, entries, l, r)
			if !errors.Is(err, errNoLine) {
				return g, err
			}
			if a.config.Verify == nil || !namedByAgent(entries) {
				return grant{}, unauthenticated("the user name or password is wrong")
			}
		} else if a.config.Verify == nil {
			users.waste(ctx, a.slots, l.Password)
			return grant{}, unauthenticated("the user name or password is wrong")
		}
	}
	choice, err := r.User(l.User)
	if err != nil {
		return grant{}, err
	}
	// A secret is checked for an organization, whatever agent the name chose.
	digest := a.digest("token", choice.Organization, l.Password)
	if r, ok := a.recall(digest); ok {
		return grant{id: r.id, choice: choice}, nil
	}
	release, err := acquire(ctx, a.slots)
	if err != nil {
		return grant{}, err
	}
	defer release()
	id, err := a.config.Verify(ctx, choice.Organization, l.Password)
	if err != nil {
		return grant{}, wire.AsFailure(err, wire.LegProxy)
	}
	if id.Organization != choice.Organization {
		return grant{}, unauthenticated("the credentials are not those of organization %q", choice.Organization)
	}
	a.remember(digest, remembered{id: id})
	return grant{id: id, choice: choice}, nil
}

// errNoLine says that no line of a user has that password.
var errNoLine = errors.New("no line has this password")

// namedByAgent reports whether lines bind a user to the agent of that name: a token
// that comes with the name means the same agent, and is looked at too.
func namedByAgent(entries []*userEntry) bool {
	return slices.ContainsFunc(entries, func(e *userEntry) bool { return e.agent == e.name })
}

// static checks a login against a user's lines of the credentials file. The error
// is errNoLine if none has the password.
func (a *Access) static(ctx context.Context, entries []*userEntry, l Login, r Router) (grant, error) {
	digest := a.digest("user", l.User, l.Password)
	if known, ok := a.recall(digest); ok && slices.Contains(entries, known.by) {
		return known.by.grant(l.User, r)
	}
	for _, e := range entries {
		g, err := e.grant(l.User, r)
		if err != nil {
			return grant{}, err
		}
		ok, err := e.matches(ctx, a.slots, l.Password)
		if err != nil {
			return grant{}, err
		}
		if ok {
			a.remember(digest, remembered{id: g.id, by: e})
			return g, nil
		}
	}
	return grant{}, errNoLine
}

// grant is what an entry is worth to a user who has its password.
func (e *userEntry) grant(user string, r Router) (grant, error) {
	g := grant{
		id:     Identity{Organization: r.Organization, Principal: identity.Principal{Kind: identity.KindClient, Name: cmp.Or(e.as, user)}},
		choice: AgentRef{Organization: r.Organization}, by: e,
	}
	switch {
	case e.agent != "":
		g.choice.Agent, g.only = e.agent, true
		if e.org != "" && e.org != r.Organization {
			if !r.Organizations {
				return grant{}, unauthenticated("this proxy serves organization %s only", r.Organization)
			}
			g.choice.Organization, g.id.Organization = e.org, e.org
		}
	case e.anyUser:
		g.id.Principal.Name = "*" // the name is the agent's
		choice, err := r.User(user)
		if err != nil {
			return grant{}, err
		}
		if choice.Organization != r.Organization {
			return grant{}, unauthenticated("the user name or password is wrong")
		}
		g.choice = choice
	}
	return g, nil
}

func unauthenticated(format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegClient, wire.CodeUnauthenticated, format, args...)
}

// acquire waits for one of slots.
func acquire(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, wire.Fail(wire.LegProxy, wire.CodeOverloaded, "too many credentials are being checked").WithCause(ctx.Err())
	}
}

func (a *Access) digest(parts ...string) [sha256.Size]byte {
	h := hmac.New(sha256.New, a.key[:])
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (a *Access) recall(digest [sha256.Size]byte) (remembered, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.recent[digest]
	if !ok || !a.now().Before(r.expires) {
		return remembered{}, false
	}
	return r, true
}

func (a *Access) remember(digest [sha256.Size]byte, login remembered) {
	now := a.now()
	login.expires = now.Add(rememberFor)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.recent) >= rememberMax {
		for k, r := range a.recent {
			if !now.Before(r.expires) {
				delete(a.recent, k)
			}
		}
		for k := range a.recent { // in no order: any will do
			if len(a.recent) < rememberMax {
				break
			}
			delete(a.recent, k)
		}
	}
	a.recent[digest] = login
}

// clientAddr returns the address of a client, without the mapping that
// dual-stack sockets apply to IPv4.
func clientAddr(conn net.Conn) netip.AddrPort {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

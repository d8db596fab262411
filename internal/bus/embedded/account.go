package embedded

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
)

// ErrNoAccount is returned for an organization without an account.
var ErrNoAccount = errors.New("the organization has no account on the bus")

// revocationAge is how long a revocation is kept: longer than any token lives that
// the hub mints for parties.
const revocationAge = 25 * time.Hour

// account is a tenant of the bus: nothing crosses from one to another.
type account struct {
	key     keyPair
	name    string
	store   bool             // may keep state: the hub's
	revoked map[string]int64 // by user key: tokens issued until then (Unix seconds) are void
	deleted bool

	connections int64 // at once, at most; 0 for the server's default
}

// claims returns what the account may do, as its JWT says it.
func (s *Server) claims(a *account) *jwt.AccountClaims {
	c := jwt.NewAccountClaims(a.key.public)
	c.Name = a.name
	c.Limits.Conn = int64(s.conf.MaxConnections)
	if a.connections > 0 {
		c.Limits.Conn = a.connections
	}
	c.Limits.LeafNodeConn = 0
	c.Limits.Imports, c.Limits.Exports, c.Limits.WildcardExports = 0, 0, false
	c.Limits.DisallowBearer = true
	if a.store {
		c.Limits.JetStreamLimits = jwt.JetStreamLimits{
			DiskStorage: jwt.NoLimit, MemoryStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
		}
	}
	c.Revocations = jwt.RevocationList(a.revoked)
	if a.deleted {
		c.RevokeAt(jwt.All, time.Now().Add(100*365*24*time.Hour))
	}
	return c
}

// store signs the account's claims and gives them to the server's resolver.
func (s *Server) store(a *account) error {
	token, err := s.claims(a).Encode(s.operator)
	if err != nil {
		return fmt.Errorf("sign bus account of %s: %w", a.name, err)
	}
	return s.resolver.Store(a.key.public, token)
}

// apply stores the account and makes the running server follow it: connections
// that it no longer allows are cut.
func (s *Server) apply(a *account) error {
	if err := s.store(a); err != nil {
		return err
	}
	live, err := s.ns.LookupAccount(a.key.public)
	if err != nil {
		return fmt.Errorf("look up bus account of %s: %w", a.name, err)
	}
	s.ns.UpdateAccountClaims(live, s.claims(a))
	return nil
}

// EnsureAccount gives an organization its account, made with a seed of
// NewAccountSeed. To do it again with the same seed changes nothing.
func (s *Server) EnsureAccount(org string, seed []byte) error {
	if err := identity.ValidateName("organization", org); err != nil {
		return err
	}
	key, err := keyFromSeed("the bus account of "+org, seed, nkeys.PrefixByteAccount)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[org]; a != nil {
		if a.key.public != key.public {
			return fmt.Errorf("organization %s has another account on the bus", org)
		}
		return nil
	}
	a := &account{key: key, name: org}
	if err := s.apply(a); err != nil {
		return err
	}
	s.accounts[org] = a
	return nil
}

// LimitConnections bounds the connections that an organization may have at once, the
// hub's own not counted; 0 means the server's default. Those that are too many are cut.
func (s *Server) LimitConnections(org string, most int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[org]
	if a == nil {
		return fmt.Errorf("%w: %s", ErrNoAccount, org)
	}
	if most > 0 {
		most++ // the hub's own
	}
	if a.connections == most {
		return nil
	}
	before := a.connections
	a.connections = most
	if err := s.apply(a); err != nil {
		a.connections = before
		return err
	}
	return nil
}

// ConnectionsOf returns how many connections an organization has, the hub's own
// not counted.
func (s *Server) ConnectionsOf(org string) int {
	s.mu.Lock()
	a := s.accounts[org]
	s.mu.Unlock()
	if a == nil {
		return 0
	}
	live, err := s.ns.LookupAccount(a.key.public)
	if err != nil {
		return 0
	}
	return max(live.NumConnections()-1, 0)
}

// RemoveAccount ends an organization: its connections are cut, and no token of
// its account is good any more. It is no error if there is none.
func (s *Server) RemoveAccount(org string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[org]
	if a == nil {
		return nil
	}
	a.deleted = true
	if err := s.apply(a); err != nil {
		return err
	}
	delete(s.accounts, org)
	return nil
}

// RevokeUser voids the tokens minted for a user's key up to now and cuts its
// connections. It lasts until the server ends, or a day; tokens live about an hour.
func (s *Server) RevokeUser(org, userKey string) error { return s.RevokeUsers(org, userKey) }

// RevokeUsers is RevokeUser for many at the price of one.
func (s *Server) RevokeUsers(org string, userKeys ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[org]
	if a == nil {
		return fmt.Errorf("%w: %s", ErrNoAccount, org)
	}
	// A key that is none must not keep the others from being revoked.
	var errs []error
	userKeys = slices.DeleteFunc(slices.Clone(userKeys), func(key string) bool {
		err := bus.ValidateUserKey(key)
		errs = append(errs, err)
		return err != nil
	})
	if a.revoked == nil {
		a.revoked = make(map[string]int64)
	}
	now := time.Now()
	for key, at := range a.revoked {
		if now.Sub(time.Unix(at, 0)) > revocationAge {
			delete(a.revoked, key)
		}
	}
	for _, key := range userKeys {
		a.revoked[key] = now.Unix()
	}
	return errors.Join(append(errs, s.apply(a))...)
}

// MintUser returns a token (a NATS user JWT) by which the holder of userKey may
// do on the organization's bus what its role, name and replica allow, for ttl;
// 0 means without end. Times are in whole seconds, rounded up.
func (s *Server) MintUser(org, userKey string, role identity.Role, name, replica string, ttl time.Duration) (string, error) {
	s.mu.Lock()
	a := s.accounts[org]
	s.mu.Unlock()
	if a == nil {
		return "", fmt.Errorf("%w: %s", ErrNoAccount, org)
	}
	rights, err := bus.RightsOf(role, name, replica, userKey)
	if err != nil {
		return "", err
	}
	c := jwt.NewUserClaims(userKey)
	c.Name = string(role) + "/" + name + "/" + replica
	c.Pub.Allow.Add(rights.Publish...)
	c.Sub.Allow.Add(rights.Subscribe...)
	if rights.Reply {
		c.Resp = &jwt.ResponsePermission{MaxMsgs: 1, Expires: time.Minute}
	}
	if role != identity.RoleHub {
		c.Limits.Subs = userSubscriptions
		c.Limits.Payload = bus.MaxPayload
	}
	if ttl > 0 {
		c.Expires = time.Now().Add(ttl + time.Second - 1).Unix()
	}
	token, err := c.Encode(a.key)
	if err != nil {
		return "", fmt.Errorf("sign bus token: %w", err)
	}
	return token, nil
}

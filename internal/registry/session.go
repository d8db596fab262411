package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern.dev/postern/internal/identity"
)

const (
	// SessionAge is how long the store of sessions has to keep a record: longer
	// than any session lasts.
	SessionAge = 25 * time.Hour

	// maxSessions bounds the sessions of a user.
	maxSessions = 100

	// tokensKept is how many tokens of a session are good at once: while one
	// process of a person gets a new one, another may still use the last.
	tokensKept = 2
)

// ErrReplayed says that something that is good once was used before.
var ErrReplayed = errors.New("used already")

// Session is a person signed in from one place.
type Session struct {
	ID      string    `json:"id"`
	User    string    `json:"user"`
	UserUID string    `json:"userUid"`
	Groups  []string  `json:"groups,omitempty"`
	Hub     bool      `json:"hub,omitempty"` // as it was then: holds the permission over the hub itself
	Issuer  string    `json:"issuer"`
	Source  string    `json:"source"` // address of the last sign-in or renewal
	Client  string    `json:"client,omitempty"`
	Created time.Time `json:"created"`
	Renewed time.Time `json:"renewed"`
	Expires time.Time `json:"expires"`
	Hashes  []string  `json:"hashes"` // identity.HashSecret of its tokens, the newest first
}

func sessionKey(user, id string) string { return "session." + digest(user) + "." + id }

// OpenSession records that a person signed in, and returns the session with a
// token that sign makes for it. What is not known yet of s is filled in. If s.ID
// names a session of the same user that lasts, that one is renewed. ErrRevoked means
// that the user may not sign in.
func (r *Registry) OpenSession(
	ctx context.Context, s Session, subject string, sign func(identity.SessionClaims) (string, error),
) (Session, string, error) {
	u, err := r.seen(ctx, s, subject)
	if err != nil {
		return Session{}, "", err
	}
	now := r.stamp()
	s.UserUID, s.Renewed, s.Expires = u.UID, now, s.Expires.UTC().Truncate(time.Second)
	var old Session
	var rev uint64
	if s.ID != "" && identity.ValidateName("session", s.ID) == nil {
		rev, err = getFrom(ctx, r.sessions, sessionKey(s.User, s.ID), &old)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Session{}, "", fmt.Errorf("renew session: %w", err)
		}
	}
	if err != nil || rev == 0 || old.UserUID != u.UID || !now.Before(old.Expires) {
		old, rev = Session{Created: now}, 0
		all, err := r.Sessions(ctx, s.User)
		if err != nil {
			return Session{}, "", err
		}
		if len(all) >= maxSessions {
			return Session{}, "", fmt.Errorf("%w: user %s has %d sessions; sign out of some first", ErrLimit, s.User, len(all))
		}
		s.ID = uuid.NewString()
	}
	s.Created = old.Created
	token, err := sign(identity.SessionClaims{User: s.User, ID: s.ID, IssuedAt: now, Expires: s.Expires})
	if err != nil {
		return Session{}, "", err
	}
	s.Hashes = append([]string{identity.HashSecret(token)}, old.Hashes...)
	s.Hashes = s.Hashes[:min(len(s.Hashes), tokensKept)]
	b, err := json.Marshal(s)
	if err != nil {
		return Session{}, "", fmt.Errorf("encode session: %w", err)
	}
	if rev == 0 {
		_, err = r.sessions.Create(ctx, sessionKey(s.User, s.ID), b)
	} else {
		_, err = r.sessions.Update(ctx, sessionKey(s.User, s.ID), b, rev)
	}
	if err != nil {
		return Session{}, "", fmt.Errorf("open session: %w", err)
	}
	return s, token, nil
}

// CheckSession returns the session that a token is of, whose signature was
// verified, or ErrRevoked when it is not one of the session's or the session or user
// was revoked. The token's own expiry is in the token.
func (r *Registry) CheckSession(ctx context.Context, c identity.SessionClaims, secret string) (Session, error) {
	s, err := r.session(ctx, c.User, c.ID)
	if err != nil {
		return Session{}, err
	}
	for _, hash := range s.Hashes {
		if identity.SecretMatches(secret, hash) {
			return s, nil
		}
	}
	return Session{}, ErrRevoked
}

// session returns a session that lasts, or ErrRevoked.
func (r *Registry) session(ctx context.Context, user, id string) (Session, error) {
	if err := identity.ValidateName("session", id); err != nil {
		return Session{}, err
	}
	var s Session
	_, err := getFrom(ctx, r.sessions, sessionKey(user, id), &s)
	if errors.Is(err, ErrNotFound) {
		return Session{}, ErrRevoked
	} else if err != nil {
		return Session{}, fmt.Errorf("check session %s: %w", id, err)
	}
	var u User
	_, err = r.get(ctx, userKey(user), &u)
	switch {
	case errors.Is(err, ErrNotFound):
		return Session{}, ErrRevoked
	case err != nil:
		return Session{}, fmt.Errorf("check session %s: %w", id, err)
	case s.User != user || s.UserUID != u.UID || !u.Revoked.IsZero() || !r.now().Before(s.Expires):
		return Session{}, ErrRevoked
	}
	return s, nil
}

// checkUserGround says whether a person's session still stands, and still gives a
// role in the organization.
func (r *Registry) checkUserGround(ctx context.Context, g Ground) error {
	s, err := r.session(ctx, g.Name, g.Item)
	if err != nil {
		return err
	}
	if _, err := r.Organization(ctx, g.Organization); err != nil || s.Hub {
		return err
	}
	roles, err := r.Roles(ctx, g.Organization, s.User, s.Groups)
	if err == nil && len(roles) == 0 {
		err = ErrRevoked
	}
	return err
}

// Sessions returns the sessions that last, of a user or, without one, of all; the
// newest first.
func (r *Registry) Sessions(ctx context.Context, user string) ([]Session, error) {
	prefix := "session."
	if user != "" {
		prefix += digest(user) + "."
	}
	all, err := listFrom[Session](ctx, r.sessions, prefix)
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	users, err := list[User](ctx, r, "user.")
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	good := make(map[string]bool)
	for _, u := range users {
		good[u.UID] = u.Revoked.IsZero()
	}
	now := r.now()
	all = slices.DeleteFunc(all, func(s Session) bool { return !good[s.UserUID] || !now.Before(s.Expires) })
	slices.SortFunc(all, func(a, b Session) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// DeleteSession ends a session; it is fine if it has ended.
func (r *Registry) DeleteSession(ctx context.Context, s Session) error {
	if err := r.sessions.Delete(ctx, sessionKey(s.User, s.ID)); err != nil {
		return fmt.Errorf("end session %s: %w", s.ID, err)
	}
	return nil
}

// EndedSessions removes the sessions that have expired, and returns whether there
// were any.
func (r *Registry) EndedSessions(ctx context.Context) (bool, error) {
	all, err := listFrom[Session](ctx, r.sessions, "session.")
	if err != nil {
		return false, fmt.Errorf("list sessions: %w", err)
	}
	found := false
	for _, s := range all {
		if !r.now().Before(s.Expires) {
			found = true
			err = errors.Join(err, r.DeleteSession(ctx, s))
		}
	}
	return found, err
}

// UseOnce notes the use of what a hash tells, such as an ID token, or returns
// ErrReplayed. It is remembered for SessionAge.
func (r *Registry) UseOnce(ctx context.Context, hash string) error {
	_, err := r.sessions.Create(ctx, "used."+digest(hash), []byte("{}"))
	if errors.Is(err, ErrExists) {
		return ErrReplayed
	}
	if err != nil {
		return fmt.Errorf("note a use: %w", err)
	}
	return nil
}

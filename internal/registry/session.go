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

// User is a person who has signed in, or who may not.
type User struct {
	Name     string    `json:"name"`
	UID      string    `json:"uid"` // changes when the user is revoked, so that no session of before lives on
	Issuer   string    `json:"issuer,omitempty"`
	Subject  string    `json:"subject,omitempty"` // at the issuer
	Groups   []string  `json:"groups,omitempty"`  // at the last sign-in
	Created  time.Time `json:"created"`
	LastSeen time.Time `json:"lastSeen,omitzero"` // signed in, or renewed a session
	Revoked  time.Time `json:"revoked,omitzero"`  // zero: may sign in
}

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

func userKey(name string) string        { return "user." + digest(name) }
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

// seen notes that a user signs in.
func (r *Registry) seen(ctx context.Context, s Session, subject string) (User, error) {
	var u User
	rev, err := r.get(ctx, userKey(s.User), &u)
	switch {
	case errors.Is(err, ErrNotFound):
		u = User{Name: s.User, UID: uuid.NewString(), Created: r.stamp()}
	case err != nil:
		return User{}, fmt.Errorf("look up user %s: %w", s.User, err)
	case !u.Revoked.IsZero():
		return User{}, fmt.Errorf("user %s: %w", s.User, ErrRevoked)
	}
	u.Issuer, u.Subject, u.Groups, u.LastSeen = s.Issuer, subject, s.Groups, r.stamp()
	if rev == 0 {
		err = r.create(ctx, userKey(s.User), u)
	} else {
		err = r.update(ctx, userKey(s.User), u, rev)
	}
	if errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) {
		err = ErrConflict // two sign-ins at once, or a revocation: which it was, the next try tells
	}
	if err != nil {
		return User{}, fmt.Errorf("note user %s: %w", s.User, err)
	}
	return u, nil
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

// Users returns all users who have signed in or were revoked, by name.
func (r *Registry) Users(ctx context.Context) ([]User, error) {
	all, err := list[User](ctx, r, "user.")
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	slices.SortFunc(all, func(a, b User) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// User returns a user who has signed in or was revoked, or ErrNotFound.
func (r *Registry) User(ctx context.Context, name string) (User, error) {
	var u User
	if _, err := r.get(ctx, userKey(name), &u); err != nil {
		return User{}, fmt.Errorf("look up user %s: %w", name, err)
	}
	return u, nil
}

// CheckUser returns ErrRevoked for a user who was revoked. One who never signed in was
// not.
func (r *Registry) CheckUser(ctx context.Context, name string) error {
	var u User
	switch _, err := r.get(ctx, userKey(name), &u); {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look up user %s: %w", name, err)
	case !u.Revoked.IsZero():
		return fmt.Errorf("user %s: %w", name, ErrRevoked)
	default:
		return nil
	}
}

// RevokeUser ends a user's sessions for good, and lets the user sign in no more
// until AllowUser. It takes effect at its first step; a user who never signed in may
// be revoked too.
func (r *Registry) RevokeUser(ctx context.Context, name string) error {
	if err := (identity.Principal{Kind: identity.KindUser, Name: name}).Validate(); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("revoke user %s: %w", name, err) }
	for {
		var u User
		rev, err := r.get(ctx, userKey(name), &u)
		switch {
		case errors.Is(err, ErrNotFound):
			u = User{Name: name, UID: uuid.NewString(), Created: r.stamp(), Revoked: r.stamp()}
			err = r.create(ctx, userKey(name), u)
		case err == nil:
			u.UID, u.Revoked = uuid.NewString(), r.stamp()
			err = r.update(ctx, userKey(name), u, rev)
		}
		if errors.Is(err, ErrExists) || errors.Is(err, ErrConflict) {
			continue // the user signs in at this moment
		}
		if err != nil {
			return fail(err)
		}
		break
	}
	keys, err := r.sessions.List(ctx, "session."+digest(name)+".")
	for _, key := range keys {
		err = errors.Join(err, r.sessions.Delete(ctx, key))
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// AllowUser lets a revoked user sign in again, or returns ErrNotFound.
func (r *Registry) AllowUser(ctx context.Context, name string) error {
	var u User
	rev, err := r.get(ctx, userKey(name), &u)
	if err == nil {
		u.Revoked = time.Time{}
		err = r.update(ctx, userKey(name), u, rev)
	}
	if err != nil {
		return fmt.Errorf("allow user %.300s: %w", name, err)
	}
	return nil
}

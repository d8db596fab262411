package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern.dev/postern/internal/identity"
)

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

func userKey(name string) string { return "user." + digest(name) }

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

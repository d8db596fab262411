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

// usedResolution is how far LastUsed may lag, so that a thousand agents which
// share a token do not write a record at each renewal.
const usedResolution = time.Minute

// ErrRevoked says that a token is none of its robot's: it was deleted, or its
// robot or organization was.
var ErrRevoked = errors.New("token was revoked")

// CreateToken makes a token for a robot: it draws an access ID, has sign make the
// secret for it, and stores its hash. expires is zero for a token without end.
// It returns ErrNotFound without such a robot, and ErrExists when the robot has
// a token of that name.
func (r *Registry) CreateToken(
	ctx context.Context, org, robot, name string, expires time.Time, sign func(identity.RobotClaims) (string, error),
) (Token, string, error) {
	if err := identity.ValidateName("token", name); err != nil {
		return Token{}, "", err
	}
	existing, owner, err := r.tokens(ctx, org, robot)
	if err != nil {
		return Token{}, "", err
	}
	if slices.ContainsFunc(existing, func(t Token) bool { return t.Name == name }) {
		return Token{}, "", fmt.Errorf("create token %q of robot %q: %w", name, robot, ErrExists)
	}
	if len(existing) >= maxTokens {
		return Token{}, "", fmt.Errorf("create token %q of robot %q: %w: there are %d already", name, robot, ErrLimit, len(existing))
	}
	t := Token{
		Organization: org, Robot: robot, RobotUID: owner.UID, AccessID: uuid.NewString(), Name: name,
		Created: r.stamp(), Expires: expires.UTC().Truncate(time.Second),
	}
	secret, err := sign(identity.RobotClaims{
		Organization: org, Robot: robot, AccessID: t.AccessID, IssuedAt: t.Created, Expires: t.Expires,
	})
	if err != nil {
		return Token{}, "", err
	}
	t.Hash = identity.HashSecret(secret)
	if err := r.create(ctx, tokenKey(org, robot, t.AccessID), t); err != nil {
		return Token{}, "", fmt.Errorf("create token %q of robot %q: %w", name, robot, err)
	}
	return t, secret, nil
}

// Tokens returns a robot's tokens, by name.
func (r *Registry) Tokens(ctx context.Context, org, robot string) ([]Token, error) {
	all, _, err := r.tokens(ctx, org, robot)
	return all, err
}

func (r *Registry) tokens(ctx context.Context, org, robot string) ([]Token, Robot, error) {
	owner, err := r.Robot(ctx, org, robot)
	if err != nil {
		return nil, Robot{}, err
	}
	all, err := list[Token](ctx, r, "token."+org+"."+robot+".")
	if err != nil {
		return nil, Robot{}, fmt.Errorf("list tokens of robot %q: %w", robot, err)
	}
	all = slices.DeleteFunc(all, func(t Token) bool { return t.RobotUID != owner.UID })
	slices.SortFunc(all, func(a, b Token) int { return strings.Compare(a.Name, b.Name) })
	return all, owner, nil
}

// DeleteToken revokes the token of a robot that has the given access ID or name,
// or returns ErrNotFound.
func (r *Registry) DeleteToken(ctx context.Context, org, robot, idOrName string) error {
	all, _, err := r.tokens(ctx, org, robot)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(t Token) bool { return t.AccessID == idOrName })
	if i < 0 {
		i = slices.IndexFunc(all, func(t Token) bool { return t.Name == idOrName })
	}
	if i < 0 {
		return fmt.Errorf("delete token %q of robot %q: %w", idOrName, robot, ErrNotFound)
	}
	if err := r.store.Delete(ctx, tokenKey(org, robot, all[i].AccessID)); err != nil {
		return fmt.Errorf("delete token %q of robot %q: %w", idOrName, robot, err)
	}
	return nil
}

// CheckToken says whether a token whose signature was verified is still good:
// its organization and robot exist, and the token is the one that was stored
// under its access ID. It returns ErrRevoked if not, and notes that the token
// was used if so. Expiry is in the token itself.
func (r *Registry) CheckToken(ctx context.Context, c identity.RobotClaims, secret string) error {
	owner, err := r.Robot(ctx, c.Organization, c.Robot)
	if errors.Is(err, ErrNotFound) {
		return ErrRevoked
	} else if err != nil {
		return err
	}
	if err := identity.ValidateName("access ID", c.AccessID); err != nil {
		return err
	}
	key := tokenKey(c.Organization, c.Robot, c.AccessID)
	var t Token
	rev, err := r.get(ctx, key, &t)
	if errors.Is(err, ErrNotFound) {
		return ErrRevoked
	} else if err != nil {
		return fmt.Errorf("check token %s: %w", c.AccessID, err)
	}
	if t.RobotUID != owner.UID || !identity.SecretMatches(secret, t.Hash) {
		return ErrRevoked
	}
	if now := r.stamp(); now.Sub(t.LastUsed) >= usedResolution {
		t.LastUsed = now
		err := r.update(ctx, key, t, rev)
		if err != nil && !errors.Is(err, ErrConflict) {
			return fmt.Errorf("note use of token %s: %w", c.AccessID, err)
		}
		// After a conflict somebody else noted a use, or revoked the token just
		// now, which the next renewal will find.
	}
	return nil
}

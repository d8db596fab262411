package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/joinstring"
)

const (
	// maxJoins bounds the join strings of one organization that are remembered.
	maxJoins = 1024

	// joinKeep is how long after its end a join string is remembered, so that who
	// comes too late is told so, and an agent that lost the answer is not refused.
	joinKeep = 7 * 24 * time.Hour
)

// Why a join string was refused.
var (
	ErrJoinUnknown = errors.New("join string is not known")
	ErrJoinExpired = errors.New("join string has expired")
	ErrJoinUsed    = errors.New("join string was used by another key")
)

// Join is what the registry knows of a join string: for which agent it is, and
// which key used it. It does not hold the secret.
type Join struct {
	Organization    string    `json:"organization"`
	OrganizationUID string    `json:"organizationUid"`
	ID              string    `json:"id"`
	Agent           string    `json:"agent"`
	Description     string    `json:"description,omitempty"`
	Further         bool      `json:"further,omitempty"` // it may give a registered agent a further key
	Hash            string    `json:"hash"`              // identity.HashSecret of the secret
	Created         time.Time `json:"created"`
	Expires         time.Time `json:"expires"`
	KeyID           string    `json:"keyId,omitempty"` // of the key that used it; from then on it is dead
	Used            time.Time `json:"used,omitzero"`
	Registered      bool      `json:"registered,omitempty"` // the key was registered
}

func joinKey(org, id string) string { return "join." + org + "." + id }

// CreateJoin makes a join string's record, and returns it with the secret. Of j,
// Organization, Agent, Description, Further and Expires count. It returns
// ErrNotFound without such an organization, ErrExists when the agent is registered
// and j is not for a further key, and ErrLimit when there are too many.
func (r *Registry) CreateJoin(ctx context.Context, j Join) (Join, string, error) {
	if err := identity.ValidateName("agent ID", j.Agent); err != nil {
		return Join{}, "", err
	}
	if len(j.Description) > maxText {
		return Join{}, "", fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrTooLong, len(j.Description), maxText)
	}
	o, err := r.Organization(ctx, j.Organization)
	if err != nil {
		return Join{}, "", err
	}
	if !j.Further {
		if _, err := r.Agent(ctx, j.Organization, j.Agent); err == nil {
			return Join{}, "", fmt.Errorf("agent %q of organization %q is registered: %w", j.Agent, j.Organization, ErrExists)
		} else if !errors.Is(err, ErrNotFound) {
			return Join{}, "", err
		}
	}
	if err := r.roomForJoin(ctx, j.Organization); err != nil {
		return Join{}, "", err
	}
	id, secret := joinstring.NewSecret()
	j.ID, j.OrganizationUID, j.Hash, j.Created = id, o.UID, identity.HashSecret(secret), r.stamp()
	j.Expires = j.Expires.UTC().Truncate(time.Second)
	if err := r.create(ctx, joinKey(j.Organization, id), j); err != nil {
		return Join{}, "", fmt.Errorf("create join string for agent %q: %w", j.Agent, err)
	}
	return j, secret, nil
}

// roomForJoin says whether an organization may have one join string more.
func (r *Registry) roomForJoin(ctx context.Context, org string) error {
	keys, err := r.store.List(ctx, "join."+org+".")
	if err != nil {
		return fmt.Errorf("count join strings of organization %q: %w", org, err)
	}
	if len(keys) < maxJoins {
		return nil
	}
	if all, err := r.Joins(ctx, org); err != nil || len(all) < maxJoins { // it forgets the old ones
		return err
	}
	return fmt.Errorf("%w: organization %q has %d join strings; revoke some first", ErrLimit, org, len(keys))
}

// Joins returns an organization's join strings, the newest first, those that ended
// in the last days included. It forgets those whose time is long over.
func (r *Registry) Joins(ctx context.Context, org string) ([]Join, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[Join](ctx, r, "join."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list join strings of organization %q: %w", org, err)
	}
	now := r.now()
	kept := all[:0]
	for _, j := range all {
		if now.After(j.Expires.Add(joinKeep)) {
			if err := r.store.Delete(ctx, joinKey(org, j.ID)); err != nil {
				return nil, fmt.Errorf("forget join string %s: %w", j.ID, err)
			}
		} else if j.OrganizationUID == o.UID {
			kept = append(kept, j)
		}
	}
	slices.SortFunc(kept, func(a, b Join) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return kept, nil
}

// RevokeJoin removes a join string, or returns ErrNotFound. What has joined with
// it stays: unregister the agent, or remove its key, for that.
func (r *Registry) RevokeJoin(ctx context.Context, org, id string) (Join, error) {
	j, _, err := r.join(ctx, org, id)
	if errors.Is(err, ErrJoinUnknown) {
		err = ErrNotFound
	}
	if err == nil {
		err = r.store.Delete(ctx, joinKey(org, id))
	}
	if err != nil {
		return Join{}, fmt.Errorf("revoke join string %.40q: %w", id, err)
	}
	return j, nil
}

// join returns a join string's record and revision, or ErrJoinUnknown.
func (r *Registry) join(ctx context.Context, org, id string) (Join, uint64, error) {
	// Both become part of a key of the store.
	if identity.ValidateName("organization", org) != nil || identity.ValidateName("join string", id) != nil {
		return Join{}, 0, ErrJoinUnknown
	}
	o, err := r.Organization(ctx, org)
	if errors.Is(err, ErrNotFound) {
		return Join{}, 0, ErrJoinUnknown
	} else if err != nil {
		return Join{}, 0, err
	}
	var j Join
	revision, err := r.get(ctx, joinKey(org, id), &j)
	if errors.Is(err, ErrNotFound) || err == nil && j.OrganizationUID != o.UID {
		return Join{}, 0, ErrJoinUnknown
	}
	return j, revision, err
}

// UseJoin registers an agent with a key, for the secret of a join string. Of
// several who come with the same secret, the first one's key wins and the others
// get ErrJoinUsed. Who comes again with the key that won gets what the first time
// gave: its answer may have been lost. Other refusals are ErrJoinUnknown, which is
// told for a wrong secret too, ErrJoinExpired, ErrExists when the agent was
// registered in another way meanwhile, and ErrLimit when it has too many keys.
func (r *Registry) UseJoin(ctx context.Context, org, id, secret string, key identity.PublicKey) (Join, error) {
	j, err := r.claimJoin(ctx, org, id, secret, key)
	if err != nil || j.Registered {
		return j, err
	}
	// From here on nobody else can use it. When the hub stops in between, the agent
	// comes again with the same key.
	if _, err = r.registerAgent(ctx, Agent{Organization: org, ID: j.Agent, Description: j.Description, Join: id}); err != nil && !errors.Is(err, ErrExists) {
		return Join{}, err
	}
	if err := r.mayJoin(ctx, j); err != nil {
		return Join{}, err
	}
	if _, err := r.AddAgentKey(ctx, org, j.Agent, key); err != nil && !errors.Is(err, ErrExists) {
		return Join{}, err
	}
	// Once this is noted, the secret brings a key that is removed later not back.
	return r.finishJoin(ctx, org, id)
}

// claimJoin checks a join string and notes whose it is now.
func (r *Registry) claimJoin(ctx context.Context, org, id, secret string, key identity.PublicKey) (Join, error) {
	for {
		j, revision, err := r.join(ctx, org, id)
		switch {
		case err != nil:
			return Join{}, err
		case !identity.SecretMatches(secret, j.Hash):
			return Join{}, ErrJoinUnknown
		case j.KeyID != "" && j.KeyID != key.ID():
			return Join{}, ErrJoinUsed
		case j.Registered:
			return j, nil
		case r.now().After(j.Expires):
			return Join{}, ErrJoinExpired
		}
		if err := r.mayJoin(ctx, j); err != nil || j.KeyID != "" {
			return j, err
		}
		j.KeyID, j.Used = key.ID(), r.stamp()
		err = r.update(ctx, joinKey(org, id), j, revision)
		if !errors.Is(err, ErrConflict) {
			return j, err
		}
		// Somebody else was quicker, or it was revoked: look again.
	}
}

// mayJoin says whether a join string may give its agent a key: the agent is not
// registered, or by this very join string, or it is meant for a further key.
func (r *Registry) mayJoin(ctx context.Context, j Join) error {
	agent, err := r.Agent(ctx, j.Organization, j.Agent)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case agent.Join != j.ID && !j.Further:
		return fmt.Errorf("agent %q of organization %q was registered meanwhile: %w", j.Agent, j.Organization, ErrExists)
	}
	return nil
}

func (r *Registry) finishJoin(ctx context.Context, org, id string) (Join, error) {
	for {
		j, revision, err := r.join(ctx, org, id)
		if err != nil {
			return j, err
		}
		j.Registered = true
		if err = r.update(ctx, joinKey(org, id), j, revision); !errors.Is(err, ErrConflict) {
			return j, err
		}
	}
}

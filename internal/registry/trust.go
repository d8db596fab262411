package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern.dev/postern/internal/identity"
)

// maxTrusts bounds the trusted issuers of one organization.
const maxTrusts = 64

// Trust is an issuer whose tokens enrol workloads of an organization: which tokens,
// and as whom.
type Trust struct {
	Organization    string        `json:"organization"`
	OrganizationUID string        `json:"organizationUid"`
	Name            string        `json:"name"`
	UID             string        `json:"uid"`
	Issuer          string        `json:"issuer"` // as in "iss"
	Audiences       []string      `json:"audiences"`
	Claims          []string      `json:"claims"` // rules of package workload
	Role            identity.Role `json:"role"`
	Identity        string        `json:"identity"`         // agent ID or proxy name, as workload.ParseName reads it
	CA              string        `json:"ca,omitempty"`     // PEM to verify the issuer with
	Keys            string        `json:"keys,omitempty"`   // JWK set, for an issuer that is not asked
	Public          bool          `json:"public,omitempty"` // it has to be on the public Internet
	Created         time.Time     `json:"created"`
}

func trustKey(org, name string) string { return "trust." + org + "." + name }

// CreateTrust stores a trust, whose fields the caller has checked. It returns
// ErrNotFound without such an organization, ErrExists when it has one of that name,
// and ErrLimit when it has too many.
func (r *Registry) CreateTrust(ctx context.Context, t Trust) (Trust, error) {
	if err := identity.ValidateName("trust", t.Name); err != nil {
		return Trust{}, err
	}
	existing, o, err := r.trusts(ctx, t.Organization)
	if err != nil {
		return Trust{}, err
	}
	fail := func(err error) (Trust, error) {
		return Trust{}, fmt.Errorf("create trust %q in organization %q: %w", t.Name, t.Organization, err)
	}
	if slices.ContainsFunc(existing, func(other Trust) bool { return other.Name == t.Name }) {
		return fail(ErrExists)
	}
	if len(existing) >= maxTrusts {
		return fail(fmt.Errorf("%w: an organization may have %d; remove one first", ErrLimit, maxTrusts))
	}
	t.OrganizationUID, t.UID, t.Created = o.UID, uuid.NewString(), r.stamp()
	key := trustKey(t.Organization, t.Name)
	err = createOver(ctx, r, key, t, func(old Trust) bool { return old.OrganizationUID != o.UID })
	if err != nil {
		return fail(err)
	}
	return t, nil
}

// Trusts returns the trusts of an organization, by name.
func (r *Registry) Trusts(ctx context.Context, org string) ([]Trust, error) {
	all, _, err := r.trusts(ctx, org)
	return all, err
}

func (r *Registry) trusts(ctx context.Context, org string) ([]Trust, Organization, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, Organization{}, err
	}
	all, err := list[Trust](ctx, r, "trust."+org+".")
	if err != nil {
		return nil, Organization{}, fmt.Errorf("list trusts of organization %q: %w", org, err)
	}
	all = slices.DeleteFunc(all, func(t Trust) bool { return t.OrganizationUID != o.UID })
	slices.SortFunc(all, func(a, b Trust) int { return strings.Compare(a.Name, b.Name) })
	return all, o, nil
}

// trust returns one trust and its revision, or ErrNotFound.
func (r *Registry) trust(ctx context.Context, org, name string) (Trust, uint64, error) {
	if err := identity.ValidateName("trust", name); err != nil {
		return Trust{}, 0, err
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Trust{}, 0, err
	}
	var t Trust
	rev, err := r.get(ctx, trustKey(org, name), &t)
	if err == nil && t.OrganizationUID != o.UID {
		err = ErrNotFound
	}
	if err != nil {
		return Trust{}, 0, fmt.Errorf("get trust %q of organization %q: %w", name, org, err)
	}
	return t, rev, nil
}

// Trust returns one trust, or ErrNotFound.
func (r *Registry) Trust(ctx context.Context, org, name string) (Trust, error) {
	t, _, err := r.trust(ctx, org, name)
	return t, err
}

// SetTrustKeys replaces the keys of a trust whose issuer is not asked. What has
// enrolled stays.
func (r *Registry) SetTrustKeys(ctx context.Context, org, name, keys string) (Trust, error) {
	t, rev, err := r.trust(ctx, org, name)
	if err != nil {
		return Trust{}, err
	}
	t.Keys = keys
	if err := r.update(ctx, trustKey(org, name), t, rev); err != nil {
		return Trust{}, fmt.Errorf("set keys of trust %q of organization %q: %w", name, org, err)
	}
	return t, nil
}

// RemoveTrust removes a trust and returns it, or ErrNotFound. Its tokens are refused
// from the first moment.
func (r *Registry) RemoveTrust(ctx context.Context, org, name string) (Trust, error) {
	t, _, err := r.trust(ctx, org, name)
	if err == nil {
		err = r.store.Delete(ctx, trustKey(org, name))
	}
	if err != nil {
		return Trust{}, fmt.Errorf("remove trust %q of organization %q: %w", name, org, err)
	}
	return t, nil
}

// checkWorkloadGround says whether the trust still stands on which a workload
// enrolled. The ground's name is that of the trust, a slash, and the subject.
func (r *Registry) checkWorkloadGround(ctx context.Context, g Ground) error {
	name, _, _ := strings.Cut(g.Name, "/")
	t, _, err := r.trust(ctx, g.Organization, name)
	if err == nil && t.UID != g.Item {
		return ErrRevoked
	}
	return err
}

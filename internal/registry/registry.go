// Package registry keeps what administrators make: organizations, their robots
// with tokens, and registered agents with public keys. The hub's API changes it, the token endpoint asks it.
//
// Records form a tree, and a child names its parent's UID, not only its name.
// So a deletion removes the parent first, which takes effect at once, and the
// children after it; a child that outlives its parent, because the hub was
// killed in between or because it was made at the same moment, is dead even if
// a parent with the same name is made again.
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

// DefaultOrganization is the organization that every hub has from the start.
const DefaultOrganization = "default"

// maxText bounds free text in records, in bytes.
const maxText = 1024

// Organization is a tenant.
type Organization struct {
	Name    string    `json:"name"`
	UID     string    `json:"uid"` // differs from that of an earlier organization with the same name
	Created time.Time `json:"created"`
}

// Robot is a machine account of an organization.
type Robot struct {
	Organization    string    `json:"organization"`
	Name            string    `json:"name"`
	Description     string    `json:"description,omitempty"`
	UID             string    `json:"uid"`
	OrganizationUID string    `json:"organizationUid"`
	IdentityFor     []string  `json:"identityFor,omitempty"` // control planes that it may ask identity tokens for: patterns
	Created         time.Time `json:"created"`
}

// Token is what the registry knows of a robot's token. It does not hold the
// token itself.
type Token struct {
	Organization string    `json:"organization"`
	Robot        string    `json:"robot"`
	RobotUID     string    `json:"robotUid"`
	AccessID     string    `json:"accessId"`
	Name         string    `json:"name"` // unique among the robot's tokens
	Hash         string    `json:"hash"` // identity.HashSecret of the token
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires,omitzero"`  // zero: never
	LastUsed     time.Time `json:"lastUsed,omitzero"` // to a minute; zero: never
}

// Registry is the organizations, robots and tokens in a Store. It is safe for
// concurrent use, also by several hubs on one store.
type Registry struct {
	store    Store
	sessions Store
	now      func() time.Time
}

// New returns the registry that a store holds. now is the clock for the times in
// records; nil means time.Now.
func New(store Store, now func() time.Time) *Registry { return NewWithSessions(store, store, now) }

// NewWithSessions is New with a store of its own for people's sessions, which may
// forget a record SessionAge after it was written.
func NewWithSessions(store, sessions Store, now func() time.Time) *Registry {
	if now == nil {
		now = time.Now
	}
	return &Registry{store: store, sessions: sessions, now: now}
}

// The keys. Names hold no dots, so keys are unambiguous.
func organizationKey(org string) string { return "organization." + org }
func robotKey(org, robot string) string { return "robot." + org + "." + robot }
func tokenKey(org, robot, accessID string) string {
	return "token." + org + "." + robot + "." + accessID
}

// CreateOrganization makes an organization, or returns ErrExists.
func (r *Registry) CreateOrganization(ctx context.Context, name string) (Organization, error) {
	if err := identity.ValidateName("organization", name); err != nil {
		return Organization{}, err
	}
	o := Organization{Name: name, UID: uuid.NewString(), Created: r.stamp()}
	if err := r.create(ctx, organizationKey(name), o); err != nil {
		return Organization{}, fmt.Errorf("create organization %q: %w", name, err)
	}
	return o, nil
}

// EnsureOrganization returns an organization, made first if there is none.
func (r *Registry) EnsureOrganization(ctx context.Context, name string) (Organization, error) {
	o, err := r.Organization(ctx, name)
	if !errors.Is(err, ErrNotFound) {
		return o, err
	}
	o, err = r.CreateOrganization(ctx, name)
	if errors.Is(err, ErrExists) {
		return r.Organization(ctx, name) // another hub was quicker
	}
	return o, err
}

// Organization returns an organization, or ErrNotFound.
func (r *Registry) Organization(ctx context.Context, name string) (Organization, error) {
	if err := identity.ValidateName("organization", name); err != nil {
		return Organization{}, err
	}
	var o Organization
	if _, err := r.get(ctx, organizationKey(name), &o); err != nil {
		return Organization{}, fmt.Errorf("get organization %q: %w", name, err)
	}
	return o, nil
}

// Organizations returns all organizations, by name.
func (r *Registry) Organizations(ctx context.Context) ([]Organization, error) {
	all, err := list[Organization](ctx, r, "organization.")
	if err != nil {
		return nil, fmt.Errorf("list organizations: %w", err)
	}
	slices.SortFunc(all, func(a, b Organization) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// DeleteOrganization removes an organization with its robots and registered
// agents, or returns ErrNotFound. Their tokens and keys are refused from the
// first moment.
func (r *Registry) DeleteOrganization(ctx context.Context, name string) error {
	if _, err := r.Organization(ctx, name); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, organizationKey(name)); err != nil {
		return fmt.Errorf("delete organization %q: %w", name, err)
	}
	return r.sweep(ctx, "robot."+name+".", "token."+name+".", "agent."+name+".", "agentkey."+name+".", "join."+name+".", "trust."+name+".", "access."+name+".", "labels."+name+".", "binding."+name+".", "limit."+name+".", "revocation."+name+".")
}

// CreateRobot makes a robot, or returns ErrExists, or ErrNotFound when there is
// no such organization.
func (r *Registry) CreateRobot(ctx context.Context, org, name, description string) (Robot, error) {
	if err := identity.ValidateName("robot", name); err != nil {
		return Robot{}, err
	}
	if len(description) > maxText {
		return Robot{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrTooLong, len(description), maxText)
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Robot{}, err
	}
	robot := Robot{
		Organization: org, Name: name, Description: description,
		UID: uuid.NewString(), OrganizationUID: o.UID, Created: r.stamp(),
	}
	if err := r.room(ctx, "robot."+org+".", maxRobots); err != nil {
		return Robot{}, fmt.Errorf("create robot %q in organization %q: %w", name, org, err)
	}
	err = createOver(ctx, r, robotKey(org, name), robot, func(old Robot) bool { return old.OrganizationUID != o.UID })
	if err != nil {
		return Robot{}, fmt.Errorf("create robot %q in organization %q: %w", name, org, err)
	}
	return robot, nil
}

// Robot returns a robot, or ErrNotFound.
func (r *Registry) Robot(ctx context.Context, org, name string) (Robot, error) {
	if err := identity.ValidateName("robot", name); err != nil {
		return Robot{}, err
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Robot{}, err
	}
	var robot Robot
	if _, err = r.get(ctx, robotKey(org, name), &robot); err == nil && robot.OrganizationUID != o.UID {
		err = ErrNotFound
	}
	if err != nil {
		return Robot{}, fmt.Errorf("get robot %q in organization %q: %w", name, org, err)
	}
	return robot, nil
}

// Robots returns an organization's robots, by name.
func (r *Registry) Robots(ctx context.Context, org string) ([]Robot, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[Robot](ctx, r, "robot."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list robots of organization %q: %w", org, err)
	}
	all = slices.DeleteFunc(all, func(robot Robot) bool { return robot.OrganizationUID != o.UID })
	slices.SortFunc(all, func(a, b Robot) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// DeleteRobot removes a robot with its tokens, or returns ErrNotFound. The
// tokens are refused from the first moment.
func (r *Registry) DeleteRobot(ctx context.Context, org, name string) error {
	if _, err := r.Robot(ctx, org, name); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, robotKey(org, name)); err != nil {
		return fmt.Errorf("delete robot %q in organization %q: %w", name, org, err)
	}
	return r.sweep(ctx, "token."+org+"."+name+".")
}

// stamp returns the time for a record.
func (r *Registry) stamp() time.Time { return r.now().UTC().Truncate(time.Millisecond) }

func (r *Registry) get(ctx context.Context, key string, into any) (uint64, error) {
	return getFrom(ctx, r.store, key, into)
}

func getFrom(ctx context.Context, store Store, key string, into any) (uint64, error) {
	b, rev, err := store.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return 0, fmt.Errorf("read record %s: %w", key, err)
	}
	return rev, nil
}

func (r *Registry) create(ctx context.Context, key string, record any) error {
	b, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", key, err)
	}
	_, err = r.store.Create(ctx, key, b)
	return err
}

// createOver creates a record. One that is dead, for an earlier organization or agent with
// the name left it, loses its place.
func createOver[T any](ctx context.Context, r *Registry, key string, record T, dead func(old T) bool) error {
	err := r.create(ctx, key, record)
	if !errors.Is(err, ErrExists) {
		return err
	}
	var old T
	if rev, getErr := r.get(ctx, key, &old); getErr == nil && dead(old) {
		return r.update(ctx, key, record, rev)
	}
	return err
}

func (r *Registry) update(ctx context.Context, key string, record any, rev uint64) error {
	b, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", key, err)
	}
	_, err = r.store.Update(ctx, key, b, rev)
	return err
}

// list returns the records under a prefix; one that is deleted meanwhile is left out.
func list[T any](ctx context.Context, r *Registry, prefix string) ([]T, error) {
	return listFrom[T](ctx, r.store, prefix)
}

func listFrom[T any](ctx context.Context, store Store, prefix string) ([]T, error) {
	keys, err := store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	all := make([]T, 0, len(keys))
	for _, key := range keys {
		var record T
		_, err := getFrom(ctx, store, key, &record)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, record)
	}
	return all, nil
}

// sweep removes the records under prefixes, all that it can.
func (r *Registry) sweep(ctx context.Context, prefixes ...string) error {
	var errs []error
	for _, prefix := range prefixes {
		keys, err := r.store.List(ctx, prefix)
		errs = append(errs, err)
		for _, key := range keys {
			errs = append(errs, r.store.Delete(ctx, key))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what belonged to it: %w", err)
	}
	return nil
}

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

// maxKeys bounds the public keys of one agent: two are enough to rotate.
const maxKeys = 16

// minKeyPrefix is how much of a key ID has to be given to name a key.
const minKeyPrefix = 8

// ErrLimit says that there are as many of something as there may be.
var ErrLimit = errors.New("limit reached")

// Agent is an agent that enrols with keys of its own. From its registration on no
// robot can take its ID.
type Agent struct {
	Organization    string    `json:"organization"`
	ID              string    `json:"id"`
	Description     string    `json:"description,omitempty"`
	UID             string    `json:"uid"`
	OrganizationUID string    `json:"organizationUid"`
	Created         time.Time `json:"created"`
	Join            string    `json:"join,omitempty"` // ID of the join string that registered it
}

// AgentKey is a public key of a registered agent.
type AgentKey struct {
	Organization string    `json:"organization"`
	Agent        string    `json:"agent"`
	AgentUID     string    `json:"agentUid"`
	ID           string    `json:"id"`   // identity.PublicKey.ID
	Kind         string    `json:"kind"` // identity.PublicKey.Kind
	PEM          string    `json:"pem"`
	Created      time.Time `json:"created"`
	LastUsed     time.Time `json:"lastUsed,omitzero"` // to a minute; zero: never
}

func agentKey(org, agent string) string        { return "agent." + org + "." + agent }
func agentKeyKey(org, agent, id string) string { return "agentkey." + org + "." + agent + "." + id }

// RegisterAgent registers an agent, or returns ErrExists, or ErrNotFound when
// there is no such organization.
func (r *Registry) RegisterAgent(ctx context.Context, org, id, description string) (Agent, error) {
	return r.registerAgent(ctx, Agent{Organization: org, ID: id, Description: description})
}

func (r *Registry) registerAgent(ctx context.Context, agent Agent) (Agent, error) {
	org, id := agent.Organization, agent.ID
	if err := identity.ValidateName("agent ID", id); err != nil {
		return Agent{}, err
	}
	if len(agent.Description) > maxText {
		return Agent{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrTooLong, len(agent.Description), maxText)
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Agent{}, err
	}
	agent.UID, agent.OrganizationUID, agent.Created = uuid.NewString(), o.UID, r.stamp()
	if err := r.room(ctx, "agent."+org+".", maxRegistrations); err != nil {
		return Agent{}, fmt.Errorf("register agent %q in organization %q: %w", agent.ID, org, err)
	}
	err = createOver(ctx, r, agentKey(org, id), agent, func(old Agent) bool { return old.OrganizationUID != o.UID })
	if err != nil {
		return Agent{}, fmt.Errorf("register agent %q in organization %q: %w", id, org, err)
	}
	return agent, nil
}

// Agent returns a registered agent, or ErrNotFound.
func (r *Registry) Agent(ctx context.Context, org, id string) (Agent, error) {
	if err := identity.ValidateName("agent ID", id); err != nil {
		return Agent{}, err
	}
	o, err := r.Organization(ctx, org)
	if err != nil {
		return Agent{}, err
	}
	var agent Agent
	if _, err = r.get(ctx, agentKey(org, id), &agent); err == nil && agent.OrganizationUID != o.UID {
		err = ErrNotFound
	}
	if err != nil {
		return Agent{}, fmt.Errorf("get registration of agent %q in organization %q: %w", id, org, err)
	}
	return agent, nil
}

// Agents returns an organization's registered agents, by ID.
func (r *Registry) Agents(ctx context.Context, org string) ([]Agent, error) {
	o, err := r.Organization(ctx, org)
	if err != nil {
		return nil, err
	}
	all, err := list[Agent](ctx, r, "agent."+org+".")
	if err != nil {
		return nil, fmt.Errorf("list registered agents of organization %q: %w", org, err)
	}
	all = slices.DeleteFunc(all, func(a Agent) bool { return a.OrganizationUID != o.UID })
	slices.SortFunc(all, func(a, b Agent) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// UnregisterAgent removes an agent's registration with its keys, or returns
// ErrNotFound. The keys are refused from the first moment.
func (r *Registry) UnregisterAgent(ctx context.Context, org, id string) error {
	if _, err := r.Agent(ctx, org, id); err != nil {
		return err
	}
	if err := r.store.Delete(ctx, agentKey(org, id)); err != nil {
		return fmt.Errorf("unregister agent %q in organization %q: %w", id, org, err)
	}
	return r.sweep(ctx, "agentkey."+org+"."+id+".")
}

// AddAgentKey gives a registered agent a further key. A key that it has already
// is ErrExists, one too many ErrLimit.
func (r *Registry) AddAgentKey(ctx context.Context, org, agent string, key identity.PublicKey) (AgentKey, error) {
	existing, owner, err := r.agentKeys(ctx, org, agent)
	if err != nil {
		return AgentKey{}, err
	}
	fail := func(err error) (AgentKey, error) {
		return AgentKey{}, fmt.Errorf("add key %s to agent %q: %w", key.ID(), agent, err)
	}
	if slices.ContainsFunc(existing, func(k AgentKey) bool { return k.ID == key.ID() }) {
		return fail(ErrExists)
	}
	if len(existing) >= maxKeys {
		return fail(fmt.Errorf("%w: an agent may have %d keys; remove one first", ErrLimit, maxKeys))
	}
	k := AgentKey{
		Organization: org, Agent: agent, AgentUID: owner.UID, ID: key.ID(), Kind: key.Kind(), PEM: string(key.PEM()), Created: r.stamp(),
	}
	name := agentKeyKey(org, agent, k.ID)
	err = createOver(ctx, r, name, k, func(old AgentKey) bool { return old.AgentUID != owner.UID })
	if err != nil {
		return fail(err)
	}
	return k, nil
}

// AgentKeys returns a registered agent's keys, oldest first.
func (r *Registry) AgentKeys(ctx context.Context, org, agent string) ([]AgentKey, error) {
	all, _, err := r.agentKeys(ctx, org, agent)
	return all, err
}

func (r *Registry) agentKeys(ctx context.Context, org, agent string) ([]AgentKey, Agent, error) {
	owner, err := r.Agent(ctx, org, agent)
	if err != nil {
		return nil, Agent{}, err
	}
	all, err := list[AgentKey](ctx, r, "agentkey."+org+"."+agent+".")
	if err != nil {
		return nil, Agent{}, fmt.Errorf("list keys of agent %q: %w", agent, err)
	}
	all = slices.DeleteFunc(all, func(k AgentKey) bool { return k.AgentUID != owner.UID })
	slices.SortFunc(all, func(a, b AgentKey) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, owner, nil
}

// RemoveAgentKey removes the key with the given ID, or the one whose ID begins
// so (8 digits at least), from an agent. It returns the key, or ErrNotFound.
func (r *Registry) RemoveAgentKey(ctx context.Context, org, agent, id string) (AgentKey, error) {
	all, _, err := r.agentKeys(ctx, org, agent)
	if err != nil {
		return AgentKey{}, err
	}
	var found []AgentKey
	for _, k := range all {
		if len(id) >= minKeyPrefix && strings.HasPrefix(k.ID, id) {
			found = append(found, k)
		}
	}
	if len(found) != 1 {
		return AgentKey{}, fmt.Errorf("remove key %.64q of agent %q: %w", id, agent, ErrNotFound)
	}
	if err := r.store.Delete(ctx, agentKeyKey(org, agent, found[0].ID)); err != nil {
		return AgentKey{}, fmt.Errorf("remove key %s of agent %q: %w", found[0].ID, agent, err)
	}
	return found[0], nil
}

// FindAgentKey returns the key with which an agent may prove who it is, or
// ErrRevoked when the agent has none with that ID.
func (r *Registry) FindAgentKey(ctx context.Context, org, agent, id string) (identity.PublicKey, error) {
	k, _, err := r.findAgentKey(ctx, org, agent, id)
	if err != nil {
		return identity.PublicKey{}, err
	}
	return identity.ParsePublicKey([]byte(k.PEM))
}

func (r *Registry) findAgentKey(ctx context.Context, org, agent, id string) (AgentKey, uint64, error) {
	if err := identity.ValidateKeyID(id); err != nil {
		return AgentKey{}, 0, err
	}
	owner, err := r.Agent(ctx, org, agent)
	if errors.Is(err, ErrNotFound) {
		return AgentKey{}, 0, ErrRevoked
	} else if err != nil {
		return AgentKey{}, 0, err
	}
	var k AgentKey
	rev, err := r.get(ctx, agentKeyKey(org, agent, id), &k)
	if errors.Is(err, ErrNotFound) || err == nil && k.AgentUID != owner.UID {
		return AgentKey{}, 0, ErrRevoked
	} else if err != nil {
		return AgentKey{}, 0, fmt.Errorf("check key %s: %w", id, err)
	}
	return k, rev, nil
}

// NoteAgentKeyUse notes that a key was used just now, which lists show.
func (r *Registry) NoteAgentKeyUse(ctx context.Context, org, agent, id string) error {
	k, rev, err := r.findAgentKey(ctx, org, agent, id)
	if err != nil {
		return err
	}
	now := r.stamp()
	if now.Sub(k.LastUsed) < usedResolution {
		return nil
	}
	k.LastUsed = now
	err = r.update(ctx, agentKeyKey(org, agent, id), k, rev)
	if err != nil && !errors.Is(err, ErrConflict) {
		return fmt.Errorf("note use of key %s: %w", id, err)
	}
	return nil
}

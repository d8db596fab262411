package hub

import (
	"errors"
	"fmt"
	"net/http"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

func (a *API) listRegistrations(r *http.Request) (any, error) {
	org := r.PathValue("org")
	agents, err := a.o.Registry.Agents(r.Context(), org)
	if err != nil {
		return nil, err
	}
	all := make([]api.Registration, 0, len(agents))
	for _, agent := range agents {
		one, err := a.registration(r, agent)
		if errors.Is(err, registry.ErrNotFound) {
			continue // unregistered meanwhile
		} else if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func (a *API) getRegistration(r *http.Request) (any, error) {
	agent, err := a.o.Registry.Agent(r.Context(), r.PathValue("org"), r.PathValue("agent"))
	if err != nil {
		return nil, err
	}
	return a.registration(r, agent)
}

// registration puts an agent and its keys together.
func (a *API) registration(r *http.Request, agent registry.Agent) (api.Registration, error) {
	keys, err := a.o.Registry.AgentKeys(r.Context(), agent.Organization, agent.ID)
	return api.Registration{
		Organization: agent.Organization, ID: agent.ID, Description: agent.Description, Created: agent.Created, Keys: convert(keys, agentKeyOf),
	}, err
}

func (a *API) registerAgent(r *http.Request) (any, error) {
	var req api.RegisterAgent
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	if len(req.PublicKeys) == 0 {
		return nil, wire.Fail(wire.LegHub, wire.CodeBadRequest, "an agent is registered with one public key at least").
			WithHint("make one with: postern agent keygen")
	}
	keys := make([]identity.PublicKey, 0, len(req.PublicKeys))
	for i, text := range req.PublicKeys {
		key, err := identity.ParsePublicKey([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("public key %d: %w", i+1, err)
		}
		keys = append(keys, key)
	}
	agent, err := a.o.Registry.RegisterAgent(r.Context(), r.PathValue("org"), req.ID, req.Description)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		_, err := a.o.Registry.AddAgentKey(r.Context(), agent.Organization, agent.ID, key)
		if err != nil && !errors.Is(err, registry.ErrExists) { // the same key twice is one
			return nil, err
		}
	}
	a.o.Log.Info("agent registered", "organization", agent.Organization, "agent", agent.ID, "keys", len(keys))
	return a.registration(r, agent)
}

func (a *API) unregisterAgent(r *http.Request) (any, error) {
	org, agent := r.PathValue("org"), r.PathValue("agent")
	err := a.o.Registry.UnregisterAgent(r.Context(), org, agent)
	if err := errors.Join(err, a.enforce(r, registry.Ground{Organization: org, Kind: registry.GroundAgent, Name: agent})); err != nil {
		return nil, err
	}
	a.o.Log.Info("agent unregistered", "organization", org, "agent", agent)
	return nil, nil
}

func (a *API) addAgentKey(r *http.Request) (any, error) {
	var req api.AddAgentKey
	if err := api.ReadJSON(r, &req); err != nil {
		return nil, err
	}
	key, err := identity.ParsePublicKey([]byte(req.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	k, err := a.o.Registry.AddAgentKey(r.Context(), r.PathValue("org"), r.PathValue("agent"), key)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("agent's key added", "organization", k.Organization, "agent", k.Agent, "key", k.ID, "kind", k.Kind)
	return agentKeyOf(k), nil
}

func (a *API) removeAgentKey(r *http.Request) (any, error) {
	org, agent := r.PathValue("org"), r.PathValue("agent")
	k, err := a.o.Registry.RemoveAgentKey(r.Context(), org, agent, r.PathValue("key"))
	if err := errors.Join(err, a.enforce(r, registry.Ground{Organization: org, Kind: registry.GroundAgent, Name: agent})); err != nil {
		return nil, err
	}
	a.o.Log.Info("agent's key removed", "organization", org, "agent", agent, "key", k.ID)
	return nil, nil
}

func agentKeyOf(k registry.AgentKey) api.AgentKey {
	return api.AgentKey{ID: k.ID, Kind: k.Kind, PublicKey: k.PEM, Created: k.Created, LastUsed: k.LastUsed}
}

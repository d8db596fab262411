package api

import (
	"context"
	"net/url"

	"postern.dev/postern/internal/limit"
)

// The levels of PartyLimits.
const (
	LevelOrganization = "organization"
	LevelAgent        = "agent"
	LevelProxy        = "proxy"
)

// PartyLimits is the limits of an organization, an agent or a proxy, and what it uses
// of them at this hub.
type PartyLimits struct {
	Organization string       `json:"organization"`
	Level        string       `json:"level"`
	Name         string       `json:"name,omitempty"` // of the agent or proxy
	Set          limit.Limits `json:"set"`            // for this one; the rest is by default
	Limits       limit.Limits `json:"limits"`         // that hold

	Streams     int64 `json:"streams"`               // through the hub's own proxies, now
	Pipes       int64 `json:"pipes"`                 // of other proxies at the relay, now, with those that are idle
	Agents      int64 `json:"agents,omitempty"`      // of the organization that have credentials
	Connections int64 `json:"connections,omitempty"` // of the organization to the bus

	Refusals         map[string]uint64 `json:"refusals,omitempty"`         // since the hub's start, by limit
	ThrottledSeconds float64           `json:"throttledSeconds,omitempty"` // that bytes have waited since then, summed over all that waited
}

// Limits returns the limits and use of an organization, which comes first, and of those
// of its agents and proxies that have limits of their own or were used in the last
// minutes.
func (c *Client) Limits(ctx context.Context, org string) ([]PartyLimits, error) {
	return get[[]PartyLimits](ctx, c, organizationPath(org)+"/limits", nil)
}

// SetLimits changes limits of an organization, or with another level and a name those
// of an agent or proxy. What is unset stays as it is.
func (c *Client) SetLimits(ctx context.Context, org, level, name string, l limit.Limits) ([]PartyLimits, error) {
	return patch[[]PartyLimits](ctx, c, limitsPath(org, level, name), l)
}

// RemoveLimits makes the hub's defaults hold again.
func (c *Client) RemoveLimits(ctx context.Context, org, level, name string) error {
	return c.remove(ctx, limitsPath(org, level, name), nil)
}

func limitsPath(org, level, name string) string {
	path := organizationPath(org) + "/limits"
	if level == LevelOrganization {
		return path
	}
	return path + "/" + level + "/" + url.PathEscape(name)
}

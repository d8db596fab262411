// Package access holds access grants: who may reach which targets through which
// agents of an organization, as its administrators say at the hub. It is pure: the
// hub keeps the grants, each agent gets those that concern it and judges by them,
// beside its owner's own rules (package policy). Both have to allow a stream, so a
// grant never widens what an agent's owner allows.
//
// There are no grants that forbid: what none allows is refused.
package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
)

// Limits of grants.
const (
	MaxGrants  = 5000    // of one organization
	MaxSize    = 1 << 20 // of one organization's grants together, in bytes of JSON
	MaxTargets = 64      // of one grant
	MaxNote    = 256     // of a grant's note, in bytes
)

// Grant lets somebody reach some targets through some agents.
type Grant struct {
	ID      string             `json:"id"` // a name, unique in the organization
	To      policy.Whom        `json:"to"`
	Agent   Selector           `json:"agent,omitzero"` // not told to agents, which get only what concerns them
	Targets []policy.Rule      `json:"targets"`        // one at least; any of them suffices
	Expires time.Time          `json:"expires,omitzero"`
	Created time.Time          `json:"created,omitzero"`
	By      identity.Principal `json:"by,omitzero"` // who made it; the zero one: the hub itself
	Note    string             `json:"note,omitempty"`
}

// Validate says whether the grant can be used.
func (g Grant) Validate() error {
	switch {
	case len(g.Targets) == 0:
		return errors.New("access grant has no target")
	case len(g.Targets) > MaxTargets:
		return fmt.Errorf("access grant has %d targets; at most %d are possible", len(g.Targets), MaxTargets)
	case len(g.Note) > MaxNote:
		return fmt.Errorf("access grant's note has %d bytes; at most %d are possible", len(g.Note), MaxNote)
	case g.Expires.Year() > 9999 || g.Created.Year() > 9999:
		return errors.New("access grant has a time out of range")
	}
	if slices.Contains(g.Targets, policy.Rule{}) {
		return errors.New("access grant has an empty target")
	}
	return errors.Join(identity.ValidateName("access grant ID", g.ID), g.To.Validate())
}

// Expired reports whether the grant has ended at a time.
func (g Grant) Expired(now time.Time) bool { return !g.Expires.IsZero() && !now.Before(g.Expires) }

// Scope returns what the grant allows: "to robot:ci on tcp:db:5432, kubernetes".
func (g Grant) Scope() string {
	targets := make([]string, len(g.Targets))
	for i, r := range g.Targets {
		targets[i] = r.String()
	}
	return "to " + g.To.String() + " on " + strings.Join(targets, ", ")
}

// Everything returns the rules that cover every target.
func Everything() []policy.Rule {
	return []policy.Rule{policy.MustRule("kubernetes"), policy.MustRule("gateway"), policy.MustRule("tcp:*:*")}
}

// Defaults returns the grants of a new organization: all who enrolled as machines,
// and whoever uses the hub's own proxies as a machine would, may reach all agents.
// People are not among them.
func Defaults(now time.Time) []Grant {
	grants := make([]Grant, 0, 5)
	for _, d := range []struct {
		id   string
		kind identity.PrincipalKind
		note string
	}{
		{"default-robots", identity.KindRobot, "the organization's robots"},
		{"default-workloads", identity.KindWorkload, "workloads of trusted issuers"},
		{"default-clients", identity.KindClient, "users in the credentials file of the hub's own proxies"},
		{"default-hub", identity.KindHub, "clients of the hub's own proxies on loopback, which asks for no credentials"},
		{"default-admin", identity.KindAdmin, "the hub's administrator"},
	} {
		grants = append(grants, Grant{
			ID: d.id, To: policy.Whom{Kind: d.kind, Name: policy.Everyone}, Agent: Selector{All: true},
			Targets: Everything(), Created: now, Note: d.note,
		})
	}
	return grants
}

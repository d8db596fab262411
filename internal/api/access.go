package api

import (
	"context"
	"net/url"
	"time"
)

// AccessGrant lets somebody reach some targets through some agents.
type AccessGrant struct {
	ID        string    `json:"id"`
	To        string    `json:"to"`      // KIND:NAME, or KIND:* for all of a kind
	Agent     string    `json:"agent"`   // an agent's ID, KEY=VALUE[,KEY=VALUE…] for those with labels, or *
	Targets   []string  `json:"targets"` // rules; any of them suffices
	Note      string    `json:"note,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	CreatedBy string    `json:"createdBy,omitempty"` // KIND:NAME; nothing: the hub, for a new organization
	Expires   time.Time `json:"expires,omitzero"`    // zero: never
	Expired   bool      `json:"expired,omitempty"`   // it allows nothing any more, and is soon forgotten
}

// CreateAccessGrant is the body of POST /v1/organizations/ORG/access.
type CreateAccessGrant struct {
	ID        string   `json:"id,omitempty"` // a name; empty: the hub makes one
	To        string   `json:"to"`
	Agent     string   `json:"agent"`
	Targets   []string `json:"targets"`
	Note      string   `json:"note,omitempty"`
	ExpiresIn int64    `json:"expiresIn,omitempty"` // seconds; 0: it does not expire
}

// AgentLabels are the labels of an agent, which access grants choose by.
type AgentLabels struct {
	Organization string            `json:"organization"`
	Agent        string            `json:"agent"`
	Labels       map[string]string `json:"labels"`
}

// SetLabels is the body of POST /v1/organizations/ORG/agents/ID/labels: labels that
// change. An empty value takes one away, and what is not named stays.
type SetLabels struct {
	Labels map[string]string `json:"labels"`
}

// AccessQuery asks what an asker would be told.
type AccessQuery struct {
	From    []string // KIND:NAME of the asker, of the groups it is in, of the proxy it uses
	Agent   string
	Target  string
	Address string // one that the target leads to at the agent; may be empty
}

// The verdicts of an AccessExplanation and of its sides.
const (
	VerdictAllowed   = "allowed"
	VerdictRefused   = "refused"
	VerdictUndecided = "undecided" // the address that the target leads to decides
	VerdictUnknown   = "unknown"   // no replica of the agent answered
)

// AccessExplanation is what both sides say of a target: the hub by its access grants,
// and the agent's owner by the rules at each replica.
type AccessExplanation struct {
	From     []string        `json:"from"`              // as it was asked, with what the hub knows beside
	GroupsOf time.Time       `json:"groupsOf,omitzero"` // when the user was in the groups of From that nobody named; zero: none are
	Agent    string          `json:"agent"`
	Labels   string          `json:"labels,omitempty"` // KEY=VALUE,…
	Target   string          `json:"target"`
	Address  string          `json:"address,omitempty"`
	Verdict  string          `json:"verdict"`
	Hub      AccessSide      `json:"hub"`
	Replicas []AccessReplica `json:"replicas"`
}

// AccessSide is what one side says.
type AccessSide struct {
	Verdict string    `json:"verdict"`
	Rule    string    `json:"rule,omitempty"`   // that decides
	Origin  string    `json:"origin,omitempty"` // where it stands; at the hub, the ID of the access grant
	To      string    `json:"to,omitempty"`     // at the hub: whom that grant names
	Until   time.Time `json:"until,omitzero"`   // at the hub: when that grant expires
	Reason  string    `json:"reason,omitempty"` // why it is refused
	Missing string    `json:"missing,omitempty"`
	Hint    string    `json:"hint,omitempty"`
}

// AccessReplica is what one replica says of its owner's rules.
type AccessReplica struct {
	Name   string     `json:"name"`
	Owner  AccessSide `json:"owner"`
	Policy string     `json:"policy,omitempty"` // version of the owner's rules

	// Behind is set when the replica does not know the newest access grants yet, and
	// Grants is what those that it knows say.
	Behind bool        `json:"behind,omitempty"`
	Grants *AccessSide `json:"grants,omitempty"`
	Error  string      `json:"error,omitempty"` // it did not answer
}

// AccessGrants returns an organization's access grants, oldest first.
func (c *Client) AccessGrants(ctx context.Context, org string) ([]AccessGrant, error) {
	return get[[]AccessGrant](ctx, c, accessPath(org), nil)
}

// GrantAccess makes an access grant.
func (c *Client) GrantAccess(ctx context.Context, org string, g CreateAccessGrant) (AccessGrant, error) {
	return post[AccessGrant](ctx, c, accessPath(org), g)
}

// RevokeAccess removes the access grant with an ID.
func (c *Client) RevokeAccess(ctx context.Context, org, id string) error {
	return c.remove(ctx, accessPath(org)+"/"+url.PathEscape(id), nil)
}

// ExplainAccess says whether somebody may reach a target, and by which rules.
func (c *Client) ExplainAccess(ctx context.Context, org string, q AccessQuery) (AccessExplanation, error) {
	query := url.Values{"from": q.From, "agent": {q.Agent}, "target": {q.Target}}
	if q.Address != "" {
		query.Set("address", q.Address)
	}
	return get[AccessExplanation](ctx, c, organizationPath(org)+"/explain", query)
}

// AgentLabels returns the labels of an agent; none for one that the hub does not know.
func (c *Client) AgentLabels(ctx context.Context, org, agent string) (AgentLabels, error) {
	return get[AgentLabels](ctx, c, registrationPath(org, agent)+"/labels", nil)
}

// LabelAgent changes labels of an agent: an empty value takes one away.
func (c *Client) LabelAgent(ctx context.Context, org, agent string, labels map[string]string) (AgentLabels, error) {
	return post[AgentLabels](ctx, c, registrationPath(org, agent)+"/labels", SetLabels{labels})
}

func accessPath(org string) string { return organizationPath(org) + "/access" }

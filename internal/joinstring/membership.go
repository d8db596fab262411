package joinstring

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"postern.dev/postern/internal/identity"
)

// The files of an agent's state directory.
const (
	MembershipFile = "agent.json" // a Membership; there from the moment that the agent has joined
	KeyFile        = "agent.key"  // the agent's private key in PEM
	AuthorityFile  = "ca.crt"     // the hub's authorities in PEM, as it last named them; not there when its certificate is a public CA's
)

// maxMembership bounds a membership file, in bytes.
const maxMembership = 64 << 10

// Membership is what an agent that has joined keeps of its join string: all but
// the secret. With it and its key it needs the join string no more.
type Membership struct {
	ConnectURL   string    `json:"connectUrl"`
	CAPin        string    `json:"caPin,omitempty"`
	Organization string    `json:"organization"`
	Agent        string    `json:"agentId"`
	JoinID       string    `json:"joinId"` // of the join string that was used
	KeyID        string    `json:"keyId"`  // of the key that was registered with it
	Joined       time.Time `json:"joined,omitzero"`
}

// Membership returns what an agent keeps when it has joined with a key.
func (s String) Membership(keyID string, now time.Time) Membership {
	return Membership{
		ConnectURL: s.ConnectURL, CAPin: s.CAPin(), Organization: s.Organization, Agent: s.Agent,
		JoinID: s.ID, KeyID: keyID, Joined: now.UTC().Truncate(time.Second),
	}
}

// ParseMembership reads a membership file.
func ParseMembership(b []byte) (Membership, error) {
	if len(b) > maxMembership {
		return Membership{}, fmt.Errorf("it is longer than %d bytes", maxMembership)
	}
	var m Membership
	if err := json.Unmarshal(b, &m); err != nil {
		return Membership{}, fmt.Errorf("it is not what an agent wrote: %w", err)
	}
	err := errors.Join(
		identity.ValidateName("organization", m.Organization), identity.ValidateName("agent ID", m.Agent), identity.ValidateKeyID(m.KeyID))
	if err == nil && m.ConnectURL == "" {
		err = errors.New("it has no connect URL")
	}
	return m, err
}

package bus

import (
	"fmt"
	"strings"

	"github.com/nats-io/nkeys"

	"postern.dev/postern/internal/identity"
)

// The subjects in an organization's account:
//
//	meet.AGENT.REPLICA            a MeetRequest to one replica; it replies
//	presence.agent.AGENT.REPLICA  a replica's Presence
//	presence.ask                  "announce yourselves now"; empty
//	orders.ask.AGENT.REPLICA      "tell me my orders"; empty, from a replica to the hub
//	orders.agent.AGENT            orders for all replicas of an agent, from the hub
//	orders.agent.AGENT.REPLICA    the same for one replica
//	explain.AGENT.REPLICA         an ExplainRequest from the hub to one replica; it replies
//	audit.agent.AGENT.REPLICA     a replica's audit records; the hub replies
//	revoked.ask.PROXY             which of some credentials were revoked; the hub replies
//	_INBOX_USERKEY.>              replies to one user
//
// A subject says who listens, and mostly who speaks: but a party can have an agent
// send an answer to any subject. What matters is therefore signed (orders), or
// cannot be taken for an answer (presence).
const (
	subjectMeet     = "meet."
	subjectPresence = "presence.agent."
	subjectAsk      = "presence.ask"
	subjectOrders   = "orders.agent."
	subjectOrderAsk = "orders.ask."
	subjectExplain  = "explain."
	subjectAudit    = "audit.agent."
	subjectRevoked  = "revoked.ask."
	inboxPrefix     = "_INBOX_"
)

// Rights are the subjects that a user may publish to and subscribe to, with
// NATS wildcards.
type Rights struct {
	Publish   []string
	Subscribe []string
	Reply     bool // may answer a request, once
}

// RightsOf returns what a party may do on its organization's bus: an agent
// announces itself, serves its own meetings, hears its own orders and tells what it
// did; a proxy asks any agent to meet, watches presence, and asks the hub what was revoked; both read only their own
// replies. The hub may do all.
// userKey is the public key of the party's bus user.
func RightsOf(role identity.Role, name, replica, userKey string) (Rights, error) {
	if err := ValidateUserKey(userKey); err != nil {
		return Rights{}, err
	}
	inbox := inboxPrefix + userKey + ".>"
	if role != identity.RoleHub {
		if err := identity.ValidateName(string(role)+" name", name); err != nil {
			return Rights{}, err
		}
		if err := identity.ValidateName("replica", replica); err != nil {
			return Rights{}, err
		}
	}
	switch role {
	case identity.RoleAgent:
		return Rights{
			Publish: []string{presenceSubject(name, replica), auditSubject(name, replica), subjectOrderAsk + name + "." + replica},
			Subscribe: []string{
				meetSubject(name, replica), subjectAsk, subjectOrders + name, subjectOrders + name + "." + replica,
				subjectExplain + name + "." + replica, inbox,
			},
			Reply: true,
		}, nil
	case identity.RoleProxy:
		return Rights{
			Publish:   []string{subjectMeet + "*.*", subjectAsk, subjectRevoked + name},
			Subscribe: []string{subjectPresence + "*.*", inbox},
		}, nil
	case identity.RoleHub:
		return Rights{Publish: []string{">"}, Subscribe: []string{">"}}, nil
	default:
		return Rights{}, fmt.Errorf("role %q has no place on the bus", role)
	}
}

func meetSubject(agent, replica string) string { return subjectMeet + agent + "." + replica }

func presenceSubject(agent, replica string) string { return subjectPresence + agent + "." + replica }

// parsePresenceSubject returns whom a presence message is from. The server lets
// a replica publish only to its own subject, so this can be relied on.
func parsePresenceSubject(s string) (agent, replica string, ok bool) {
	return parseReplica(s, subjectPresence)
}

func auditSubject(agent, replica string) string { return subjectAudit + agent + "." + replica }

// parseReplica returns the replica that stands in a subject after a prefix.
func parseReplica(s, prefix string) (agent, replica string, ok bool) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return "", "", false
	}
	agent, replica, ok = strings.Cut(rest, ".")
	return agent, replica, ok && identity.ValidateName("agent", agent) == nil && identity.ValidateName("replica", replica) == nil
}

// ValidateUserKey says whether key is the public key of a bus user.
func ValidateUserKey(key string) error {
	if !nkeys.IsValidPublicUserKey(key) {
		return fmt.Errorf("bus user key %.60q is not one", key)
	}
	return nil
}

// NewUserKey makes the key of a bus user: its public part, which the hub signs
// into a token, and its seed, which is a secret.
func NewUserKey() (public string, seed []byte, err error) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		return "", nil, fmt.Errorf("make bus user key: %w", err)
	}
	defer kp.Wipe()
	if public, err = kp.PublicKey(); err != nil {
		return "", nil, fmt.Errorf("make bus user key: %w", err)
	}
	if seed, err = kp.Seed(); err != nil {
		return "", nil, fmt.Errorf("make bus user key: %w", err)
	}
	return public, append([]byte(nil), seed...), nil
}

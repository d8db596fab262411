// Package api is the hub's HTTPS API as both sides see it: paths, requests,
// responses, errors, and a client. The hub's handlers and the commands that
// talk to a hub share it; it knows nothing of how a hub works.
package api

import "time"

// Version is the version of this API: the first element of its paths.
const Version = "v1"

// The paths that take no parameter.
const (
	PathToken         = "/v1/token"
	PathOrganizations = "/v1/organizations"
	PathAgents        = "/v1/agents"
	PathAudit         = "/v1/audit" // the hub's own; an organization's is below it
	PathCA            = "/v1/ca"
	PathVersion       = "/v1/version"
	PathConnect       = "/v1/connect" // a WebSocket with the one port inside
	PathHealth        = "/healthz"
	PathReady         = "/readyz"
)

// Content types of this API.
const (
	TypeJSON    = "application/json"
	TypeLines   = "application/x-ndjson"
	TypeProblem = "application/problem+json" // RFC 9457
	TypePEM     = "application/x-pem-file"
	TypeForm    = "application/x-www-form-urlencoded"
)

// Organization is a tenant.
type Organization struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created,omitzero"`
}

// Robot is a machine account of an organization.
type Robot struct {
	Organization string    `json:"organization"`
	Name         string    `json:"name"`
	Description  string    `json:"description,omitempty"`
	IdentityFor  []string  `json:"identityFor,omitempty"` // control planes that it may ask identity tokens for
	Created      time.Time `json:"created,omitzero"`
}

// RobotToken is what the hub tells of a robot's token after it was made.
type RobotToken struct {
	Organization string    `json:"organization"`
	Robot        string    `json:"robot"`
	Name         string    `json:"name"`
	AccessID     string    `json:"accessId"`
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires,omitzero"`  // zero: never
	LastUsed     time.Time `json:"lastUsed,omitzero"` // to a minute; zero: never
}

// CreateOrganization is the body of POST /v1/organizations.
type CreateOrganization struct {
	Name string `json:"name"`
}

// CreateRobot is the body of POST /v1/organizations/ORG/robots.
type CreateRobot struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	IdentityFor []string `json:"identityFor,omitempty"` // as in SetIdentityFor
}

// CreateToken is the body of POST /v1/organizations/ORG/robots/ROBOT/tokens.
type CreateToken struct {
	Name      string `json:"name"`
	ExpiresIn int64  `json:"expiresIn,omitempty"` // seconds; 0: the token does not expire
}

// Registration is an agent that enrols with key pairs.
type Registration struct {
	Organization string     `json:"organization"`
	ID           string     `json:"id"`
	Description  string     `json:"description,omitempty"`
	Created      time.Time  `json:"created,omitzero"`
	Keys         []AgentKey `json:"keys"` // oldest first
}

// AgentKey is a public key of a registered agent.
type AgentKey struct {
	ID        string    `json:"id"`   // SHA-256 of its SubjectPublicKeyInfo in hexadecimal
	Kind      string    `json:"kind"` // "Ed25519", "ECDSA P-256", "RSA 4096", …
	PublicKey string    `json:"publicKey"`
	Created   time.Time `json:"created"`
	LastUsed  time.Time `json:"lastUsed,omitzero"` // to a minute; zero: never
}

// RegisterAgent is the body of POST /v1/organizations/ORG/agents.
type RegisterAgent struct {
	ID          string   `json:"id"`
	Description string   `json:"description,omitempty"`
	PublicKeys  []string `json:"publicKeys"` // in PEM; one at least
}

// AddAgentKey is the body of POST /v1/organizations/ORG/agents/ID/keys.
type AddAgentKey struct {
	PublicKey string `json:"publicKey"` // in PEM
}

// NewToken is a robot token at its making: what the token file holds. The token
// is a secret that the hub does not keep and cannot show again.
type NewToken struct {
	AccessID string `json:"accessId"`
	Token    string `json:"token"`
}

// The states of an agent and its replicas.
const (
	StateReady    = "ready"    // takes streams
	StateDraining = "draining" // finishes its streams and takes no new ones
	StateStopped  = "stopped"  // said goodbye
	StateLost     = "lost"     // fell silent
	StateRevoked  = "revoked"  // of an agent only: it is kept out by its name
)

// Agent is one agent ID with the replicas that share it.
type Agent struct {
	ID           string    `json:"id"`
	Organization string    `json:"organization"`
	State        string    `json:"state"` // the best of its replicas', or StateRevoked
	Replicas     []Replica `json:"replicas"`

	Labels  map[string]string `json:"labels,omitempty"`  // which access grants choose by
	Revoked *Revocation       `json:"revoked,omitempty"` // nil: it is not

	// Gateway is VerdictAllowed or VerdictRefused: what the access grants say of the
	// gateway to whoever asks. Empty for the break-glass administrator, who is nobody
	// there, and from older hubs.
	Gateway string `json:"gateway,omitempty"`
}

// Replica is one process of an agent, as it last announced itself.
type Replica struct {
	Agent       string    `json:"agent"`
	Name        string    `json:"name"`
	State       string    `json:"state"`
	Since       time.Time `json:"since"` // when State began
	Version     string    `json:"version,omitempty"`
	Zone        string    `json:"zone,omitempty"`
	Address     string    `json:"address,omitempty"` // from where it connects
	Started     time.Time `json:"started,omitzero"`
	RTTMillis   float64   `json:"rttMillis,omitempty"` // round trip between it and the bus
	Streams     int       `json:"streams"`
	Pipes       int       `json:"pipes"`
	BytesIn     uint64    `json:"bytesIn"`  // from clients to targets
	BytesOut    uint64    `json:"bytesOut"` // from targets to clients
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
	Allow       []string  `json:"allow,omitempty"` // its rules
	Policy      *Policy   `json:"policy,omitempty"`
	Gateway     bool      `json:"gateway,omitempty"` // it is a cluster at the gateway
}

// Policy is which policy is in force at a replica.
type Policy struct {
	Rules   int       `json:"rules"`            // that allow or deny
	Version string    `json:"version"`          // the same for the same rules
	Since   time.Time `json:"since"`            // when this version came into force
	Error   string    `json:"error,omitempty"`  // why the newest policy file is not in force
	ErrorAt time.Time `json:"errorAt,omitzero"` // when that was found
}

// HubVersion is the answer of GET /v1/version.
type HubVersion struct {
	Version     string `json:"version"`
	API         string `json:"api"` // Version of this package
	TrustDomain string `json:"trustDomain"`
}

// AuditHead is the end of an organization's audit log, and what verifies it.
type AuditHead struct {
	Organization string `json:"organization"` // empty: the hub's own log
	Sequence     uint64 `json:"seq"`          // of the newest record; 0: there is none
	Hash         string `json:"hash"`
	PublicKey    string `json:"publicKey"` // PEM, of the hub that signs the log
}

package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a party of an organization is.
type Role string

// The roles.
const (
	RoleAgent Role = "agent" // runs in the private network
	RoleProxy Role = "proxy" // runs near the client
	RoleHub   Role = "hub"   // the control side, relays included; belongs to no organization
)

// ID names one party. It travels as the URI of an X.509 certificate in the
// form of a SPIFFE ID (SPIFFE-ID §2, RFC 5280 §4.2.1.6):
//
//	spiffe://TRUSTDOMAIN/org/ORG/agent/NAME/REPLICA
//	spiffe://TRUSTDOMAIN/org/ORG/proxy/NAME/REPLICA
//	spiffe://TRUSTDOMAIN/hub/NAME
type ID struct {
	TrustDomain  string
	Organization string // empty for RoleHub only
	Role         Role
	Name         string // the agent's ID, the proxy's name, the hub node's name
	Replica      string // unique among the processes that share Name; empty for RoleHub
}

// NameError says that a name may not be used.
type NameError struct {
	Kind string // what was to be named: "organization", "agent ID", …
	Name string
}

// Error says what names look like.
func (e *NameError) Error() string {
	return fmt.Sprintf("%s %.100q: want 1 to 63 characters of a-z, 0-9 and '-', with none of '-' at either end", e.Kind, e.Name)
}

// ValidateName says whether name may be used for a thing of the given kind
// ("organization", "agent ID", …): 1 to 63 characters, a-z, 0-9 and '-', not at
// either end (an RFC 1123 label). That keeps names safe in URIs, bus subjects, host
// names and file names. UUIDs and Kubernetes names fit.
func ValidateName(kind, name string) error {
	if !isName(name) {
		return &NameError{Kind: kind, Name: name}
	}
	return nil
}

// maxName is the length of a name, in bytes.
const maxName = 63

// isName is written out, as names are looked at for each stream.
func isName(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// URI returns the SPIFFE ID.
func (id ID) URI() *url.URL {
	path := "/hub/" + id.Name
	if id.Role != RoleHub {
		path = "/org/" + id.Organization + "/" + string(id.Role) + "/" + id.Name + "/" + id.Replica
	}
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: path}
}

// String returns the SPIFFE ID as text.
func (id ID) String() string { return id.URI().String() }

// MarshalText returns the SPIFFE ID, which is how an ID stands in logs and JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// ParseID reads a SPIFFE ID of one of the forms of ID.
func ParseID(u *url.URL) (ID, error) {
	if u.Scheme != "spiffe" || u.Host == "" || u.User != nil || u.Opaque != "" || u.RawQuery != "" || u.Fragment != "" || u.RawPath != "" || u.ForceQuery {
		return ID{}, fmt.Errorf("%q is not a SPIFFE ID", u)
	}
	if err := ValidateTrustDomain(u.Host); err != nil {
		return ID{}, fmt.Errorf("%q is not a SPIFFE ID: %w", u, err)
	}
	id := ID{TrustDomain: u.Host}
	p := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	switch {
	case len(p) == 2 && p[0] == "hub":
		id.Role, id.Name = RoleHub, p[1]
		return id, ValidateName("hub name", id.Name)
	case len(p) == 5 && p[0] == "org" && (p[2] == string(RoleAgent) || p[2] == string(RoleProxy)):
		id.Organization, id.Role, id.Name, id.Replica = p[1], Role(p[2]), p[3], p[4]
		return id, errors.Join(ValidateName("organization", id.Organization), ValidateName("name", id.Name),
			ValidateName("replica", id.Replica))
	default:
		return ID{}, fmt.Errorf("%q is not the SPIFFE ID of a party", u)
	}
}

// CertificateID returns the identity that a certificate proves. The caller has
// verified the certificate's chain and uses the leaf only.
func CertificateID(leaf *x509.Certificate) (ID, error) {
	if len(leaf.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate %q has %d URIs; a party's has exactly one", leaf.Subject, len(leaf.URIs))
	}
	return ParseID(leaf.URIs[0])
}

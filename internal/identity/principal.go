package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// PrincipalKind is what sort of somebody a Principal is.
type PrincipalKind string

// The kinds of principals.
const (
	KindAdmin    PrincipalKind = "admin"    // the hub's break-glass administrator
	KindUser     PrincipalKind = "user"     // a person, as the identity provider names it
	KindGroup    PrincipalKind = "group"    // people, in grants only: nobody acts as a group
	KindRobot    PrincipalKind = "robot"    // a machine account of an organization
	KindAgent    PrincipalKind = "agent"    // an agent that proved itself by its own key
	KindProxy    PrincipalKind = "proxy"    // a proxy, in grants and rules only: it acts for who enrolled it
	KindClient   PrincipalKind = "client"   // a user of a proxy's own credentials file
	KindWorkload PrincipalKind = "workload" // the subject of a trusted issuer's token
	KindHub      PrincipalKind = "hub"      // a hub's own proxies
)

// MaxPrincipalName bounds a principal's name, in bytes.
const MaxPrincipalName = 256

// Principal is somebody who acts, or to whom something is granted: it stands in
// certificates, grants, audit records and logs as KIND:NAME. The zero value is
// nobody. It is comparable.
type Principal struct {
	Kind PrincipalKind
	Name string
}

// String returns KIND:NAME, or "nobody" for the zero value.
func (p Principal) String() string {
	if p == (Principal{}) {
		return "nobody"
	}
	return string(p.Kind) + ":" + p.Name
}

// MarshalText returns what String does; nothing for the zero value.
func (p Principal) MarshalText() ([]byte, error) {
	if p == (Principal{}) {
		return nil, nil
	}
	return []byte(p.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (p *Principal) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*p = Principal{}
		return nil
	}
	one, err := ParsePrincipal(string(b))
	if err == nil {
		*p = one
	}
	return err
}

// ParsePrincipal reads KIND:NAME. Names of users, groups and workloads are an
// identity provider's: up to MaxPrincipalName bytes of printable UTF-8 without
// spaces at either end. Other names are those of ValidateName.
func ParsePrincipal(s string) (Principal, error) {
	kind, name, ok := strings.Cut(s, ":")
	if !ok {
		return Principal{}, fmt.Errorf("principal %.300q: want KIND:NAME, for instance user:ann@example.org", s)
	}
	p := Principal{Kind: PrincipalKind(kind), Name: name}
	return p, p.Validate()
}

// Validate says whether the principal is one that ParsePrincipal could have read.
func (p Principal) Validate() error {
	switch p.Kind {
	case KindUser, KindGroup, KindClient, KindWorkload:
		return validateForeignName(string(p.Kind), p.Name)
	case KindAdmin, KindRobot, KindAgent, KindProxy, KindHub:
		return ValidateName(string(p.Kind), p.Name)
	default:
		return fmt.Errorf("principal %.300q: kind %.40q is none of admin, user, group, robot, agent, proxy, client, workload and hub", p.String(), p.Kind)
	}
}

func validateForeignName(kind, name string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case name == "" || len(name) > MaxPrincipalName:
		return fmt.Errorf("%s name of %d bytes: want 1 to %d", kind, len(name), MaxPrincipalName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, bad):
		return fmt.Errorf("%s name %q: want printable characters", kind, name)
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("%s name %q begins or ends with a space", kind, name)
	}
	return nil
}

// MaxGroups bounds the groups in a certificate.
const MaxGroups = 64

// Holder is on whose behalf a certificate was issued: who enrolled the party that
// the certificate names. It stands in the certificate's subject, where the
// authority's signature covers it: the principal as user ID (RFC 4519 §2.39), groups
// as organizational units.
type Holder struct {
	Principal Principal
	Groups    []string // of a user
}

// oidUserID is the attribute type uid, 0.9.2342.19200300.100.1.1 (RFC 4519 §2.39).
func oidUserID() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}
}

// oidOrganizationalUnit is the attribute type ou, 2.5.4.11 (RFC 4519 §2.20).
func oidOrganizationalUnit() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 4, 11} }

// subject returns a certificate's subject for a party called name.
func (h Holder) subject(name string) (pkix.Name, error) {
	subject := pkix.Name{CommonName: commonName(name)}
	if h.Principal == (Principal{}) {
		return subject, nil
	}
	if err := h.Principal.Validate(); err != nil {
		return pkix.Name{}, err
	}
	if len(h.Groups) > MaxGroups {
		return pkix.Name{}, fmt.Errorf("%s is in %d groups; a certificate holds %d at most", h.Principal, len(h.Groups), MaxGroups)
	}
	for _, g := range h.Groups {
		if err := validateForeignName("group", g); err != nil {
			return pkix.Name{}, err
		}
	}
	// One attribute each: several in a set would be sorted by their encoding.
	subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidUserID(), Value: h.Principal.String()}}
	for _, g := range h.Groups {
		subject.ExtraNames = append(subject.ExtraNames, pkix.AttributeTypeAndValue{Type: oidOrganizationalUnit(), Value: g})
	}
	return subject, nil
}

// CertificateHolder returns on whose behalf a certificate was issued. The caller
// has verified the certificate's chain. A certificate that does not tell has the
// zero Holder.
func CertificateHolder(leaf *x509.Certificate) (Holder, error) {
	var h Holder
	for _, a := range leaf.Subject.Names {
		if !a.Type.Equal(oidUserID()) {
			continue
		}
		text, ok := a.Value.(string)
		if !ok || h.Principal != (Principal{}) {
			return Holder{}, errors.New("certificate has no user ID that can be read")
		}
		var err error
		if h.Principal, err = ParsePrincipal(text); err != nil {
			return Holder{}, fmt.Errorf("certificate's user ID: %w", err)
		}
	}
	if h.Principal != (Principal{}) {
		h.Groups = leaf.Subject.OrganizationalUnit
	}
	return h, nil
}

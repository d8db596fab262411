package assertion

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

// Header is the name of the request header that an assertion travels in.
const Header = "Postern-Assertion"

// Type is the "typ" of an assertion's header (RFC 8725 §3.11), so that nothing else
// that the hub signs with the same key can pass for one.
const Type = "postern-assertion+jwt"

// Limits of an assertion.
const (
	MaxLen = 32 << 10         // bytes of its text
	Life   = 30 * time.Second // from its making
	Skew   = time.Minute      // by which the clocks of hub and agent may differ
)

// Mode says in whose name the agent sends the request on.
type Mode string

// The modes.
const (
	ModeImpersonate Mode = "impersonate" // the agent's service account, acting as Claims.Impersonate
	ModePass        Mode = "pass"        // the caller's own Authorization, untouched
	ModeSelf        Mode = "self"        // the agent's service account itself; the hub's own TokenReviews only
)

// Identity is somebody as a Kubernetes cluster knows him. The zero value is nobody.
type Identity struct {
	User   string              `json:"user,omitempty"`
	UID    string              `json:"uid,omitempty"`
	Groups []string            `json:"groups,omitempty"`
	Extra  map[string][]string `json:"extra,omitempty"`
}

// IsZero reports whether it names nobody and nothing.
func (i Identity) IsZero() bool {
	return i.User == "" && i.UID == "" && len(i.Groups) == 0 && len(i.Extra) == 0
}

// Service is a service of the cluster that a request is for, in place of the API
// server.
type Service struct {
	Scheme    string `json:"scheme"` // http or https
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Port      string `json:"port"` // a number, or the name of one of the service's ports
}

// Claims is the hub's word for one request.
type Claims struct {
	Organization string // of the agent
	Agent        string // ID of the agent that it is for
	ID           string // is used once; Sign draws one if it is empty
	Method       string // of the request
	URI          string // of the request, as it stands in the request line

	IssuedAt time.Time // to the second; Sign takes the time of now if it is zero
	Expires  time.Time // to the second; set by Verify

	Mode        Mode
	Principal   string   // who asks, as KIND:NAME, for access grants, rules and the audit log
	Groups      []string // of the principal, at the hub
	Impersonate Identity // whom the cluster is to see; for ModeImpersonate
	As          Identity // whom the caller wishes to be, by his own Impersonate headers
	Service     *Service // nil: the API server
	Client      string   // address of the caller, for logs
	Trace       string   // trace ID, for logs
}

// payload is the JWT's. What a newer hub may add is ignored, but for a Mode.
type payload struct {
	Audience string `json:"aud"` // ORGANIZATION/AGENT
	ID       string `json:"jti"`
	IssuedAt int64  `json:"iat"`            // seconds since 1970
	Expires  int64  `json:"exp"`            // the same
	Request  string `json:"req"`            // digest
	Bond     string `json:"bond,omitempty"` // that a signature begins

	Mode        Mode     `json:"mode"`
	Principal   string   `json:"sub"`
	Groups      []string `json:"groups,omitempty"`
	Impersonate Identity `json:"impersonate,omitzero"`
	As          Identity `json:"as,omitzero"`
	Service     *Service `json:"service,omitempty"`
	Client      string   `json:"client,omitempty"`
	Trace       string   `json:"trace,omitempty"`
}

func audience(organization, agent string) string { return organization + "/" + agent }

// request returns what binds an assertion to a request. A method has no space.
func request(method, uri string) string {
	sum := sha256.Sum256([]byte(method + " " + uri))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// check says what is wrong with the claims beside signature, time and request.
func (p payload) check() error {
	switch {
	case p.Principal == "":
		return errors.New("it names nobody who asks")
	case p.ID == "" || len(p.ID) > maxID:
		return fmt.Errorf("jti has %d bytes, want 1 to %d", len(p.ID), maxID)
	case p.IssuedAt <= 0 || p.Expires <= p.IssuedAt || p.Expires > maxTime:
		return errors.New("iat and exp are no times")
	}
	switch p.Mode {
	case ModeImpersonate:
		if p.Impersonate.User == "" {
			return errors.New("there is nobody to impersonate")
		}
	case ModePass, ModeSelf:
		if !p.Impersonate.IsZero() || !p.As.IsZero() {
			return fmt.Errorf("mode %s impersonates nobody", p.Mode)
		}
	default:
		return fmt.Errorf("mode %.20q is unknown here", p.Mode)
	}
	if p.As.User == "" && !p.As.IsZero() {
		return errors.New("the caller wishes for groups, UID or extras without a user")
	}
	if p.Service != nil {
		return p.Service.check()
	}
	return nil
}

func (s *Service) check() error {
	switch {
	case s.Scheme != "http" && s.Scheme != "https":
		return fmt.Errorf("service has the scheme %.20q, want http or https", s.Scheme)
	case s.Namespace == "" || s.Name == "" || s.Port == "":
		return errors.New("service has no namespace, name or port")
	}
	return nil
}

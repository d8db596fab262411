// Package kubeurl reads the URLs of the gateway: which cluster a request is for,
// which service in it, and what is to be sent on. It works on the request's target as
// it came, never on a decoded path, because what follows the cluster's name has to
// arrive byte for byte. It also says what a request means to Kubernetes, for the
// audit log and for limits. It is pure.
package kubeurl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// MaxLength bounds a request's target, in bytes.
const MaxLength = 32 << 10

// Why a URL is refused. Each is the caller's mistake, or an attack.
var (
	ErrForm      = errors.New("want /CLUSTER/PATH")
	ErrLong      = fmt.Errorf("the URL has more than %d bytes", MaxLength)
	ErrCluster   = errors.New("the first part of the path names no cluster")
	ErrEscape    = errors.New("the path has a % that two hexadecimal digits do not follow")
	ErrTraversal = errors.New("the path has .. and leads upwards")
	ErrByte      = errors.New("the path has a backslash or a control character")
	ErrService   = errors.New("the path names no service: want /api/v1/namespaces/NAMESPACE/services/[http:|https:]SERVICE:PORT/proxy-service/PATH")
)

// URL is what a request's target asks for.
type URL struct {
	Organization string // empty: not said
	Cluster      string // an agent's ID

	// Service is a service in the cluster, and nil for its API server.
	Service *Service

	// Rest is the target to send on, as it came: path and query. It begins with
	// a slash.
	Rest string
}

// Service is a service in a cluster.
type Service struct {
	Scheme    string // "http" or "https"
	Namespace string
	Name      string
	Port      string // a number from 1 to 65535, or the name of a port
}

// String returns NAMESPACE/NAME, as refusals name a service.
func (s Service) String() string { return s.Namespace + "/" + s.Name }

// Host returns the name under which the service is reached in its cluster.
func (s Service) Host() string { return s.Name + "." + s.Namespace + ".svc" }

// Number returns the port's number; false if it has a name only.
func (s Service) Number() (uint16, bool) {
	n, err := strconv.ParseUint(s.Port, 10, 16)
	return uint16(n), err == nil && n > 0
}

// Target returns what access grants and rules say about the service; false for a
// port that has a name only.
func (s Service) Target() (wire.Target, bool) {
	port, ok := s.Number()
	if !ok {
		return wire.Target{}, false
	}
	t, err := wire.TCP(s.Host(), port)
	return t, err == nil
}

// Parse reads the target of a request in origin form, as http.Request.RequestURI
// holds it. Errors are one of the Err… with details.
func Parse(target string) (URL, error) {
	if len(target) > MaxLength {
		return URL{}, ErrLong
	}
	path, query, asked := strings.Cut(target, "?")
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "#") {
		return URL{}, ErrForm
	}
	if err := check(path); err != nil {
		return URL{}, err
	}
	name, rest, more := strings.Cut(path[1:], "/")
	u := URL{Rest: "/" + rest}
	if err := u.name(name); err != nil {
		return URL{}, err
	}
	if more {
		if err := u.service(); err != nil {
			return URL{}, err
		}
	}
	if asked {
		u.Rest += "?" + query
	}
	return u, nil
}

// check refuses what others on the way might read otherwise than we do. It decodes a
// copy, once: what is sent on is what came.
func check(path string) error {
	for segment := range strings.SplitSeq(path, "/") {
		plain, err := unescape(segment)
		if err != nil {
			return err
		}
		if strings.Contains(segment, `\`) || strings.ContainsFunc(plain, isControl) {
			return ErrByte
		}
		for part := range strings.FieldsFuncSeq(plain, func(r rune) bool { return r == '/' || r == '\\' }) {
			if stem, _, _ := strings.Cut(part, ";"); stem == ".." {
				return ErrTraversal
			}
		}
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// unescape decodes percent signs, which need not give UTF-8.
func unescape(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", ErrEscape
		}
		high, low := hex(s[i+1]), hex(s[i+2])
		if high < 0 || low < 0 {
			return "", ErrEscape
		}
		b.WriteByte(byte(high<<4 | low)) //nolint:gosec // two digits of four bits
		i += 2
	}
	return b.String(), nil
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	default:
		return -1
	}
}

// name reads the first segment: CLUSTER or ORGANIZATION:CLUSTER. Nothing in it may be
// escaped but the colon, which some clients escape by themselves.
func (u *URL) name(segment string) error {
	organization, cluster, both := "", segment, false
	for _, colon := range []string{":", "%3A", "%3a"} {
		if !both {
			organization, cluster, both = strings.Cut(segment, colon)
		}
	}
	if !both {
		organization, cluster = "", segment
	} else if err := identity.ValidateName("organization", organization); err != nil {
		return fmt.Errorf("%w: %w", ErrCluster, err)
	}
	if err := identity.ValidateName("agent ID", cluster); err != nil {
		return fmt.Errorf("%w: %w", ErrCluster, err)
	}
	u.Organization, u.Cluster = organization, cluster
	return nil
}

// serviceMark is the segment behind a service's name that tells our services from
// those that the API server proxies to.
const serviceMark = "proxy-service"

// service looks for a service in the path, and takes it out of Rest.
func (u *URL) service() error {
	parts := strings.SplitN(u.Rest, "/", 9) // "", api, v1, namespaces, NS, services, NAME, proxy-service, PATH
	if len(parts) < 8 || parts[1] != "api" || parts[2] != "v1" || parts[3] != "namespaces" || parts[5] != "services" || parts[7] != serviceMark {
		return nil
	}
	name, err := unescape(parts[6])
	if err != nil {
		return err
	}
	s := Service{Scheme: "https", Namespace: parts[4]}
	switch fields := strings.Split(name, ":"); len(fields) {
	case 2:
		s.Name, s.Port = fields[0], fields[1]
	case 3:
		s.Scheme, s.Name, s.Port = fields[0], fields[1], fields[2]
	default:
		return ErrService
	}
	if s.Scheme != "http" && s.Scheme != "https" || !isLabel(s.Namespace) || !isLabel(s.Name) || !s.hasPort() {
		return ErrService
	}
	u.Service, u.Rest = &s, "/"
	if len(parts) == 9 {
		u.Rest += parts[8]
	}
	return nil
}

// hasPort says whether the port is a number or may be a name (RFC 6335 §5.1).
func (s Service) hasPort() bool {
	if _, ok := s.Number(); ok {
		return s.Port[0] != '0'
	}
	return len(s.Port) <= 15 && isLabel(s.Port) && strings.Trim(s.Port, "0123456789-") != ""
}

// isLabel says whether s is a label as Kubernetes names services (RFC 1123 §2.1).
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

package wire

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// MaxTargetLen bounds the text of a target, in bytes: a DNS name of 253 with
// room for "tcp:" and a port.
const MaxTargetLen = 300

// Kind is the kind of a target.
type Kind uint8

// The kinds of target.
const (
	KindTCP        Kind = iota + 1 // tcp:HOST:PORT
	KindKubernetes                 // kubernetes: the agent's own API server
	KindGateway                    // gateway: the agent's end of the gateway, for the hub alone
)

// Target is what a stream asks for: a host and port to reach over TCP, the agent's own
// Kubernetes API server, or the agent's end of the gateway. Make one with ParseTarget or TCP; the zero
// value is invalid.
type Target struct {
	Kind Kind
	Host string // KindTCP: a DNS name in lower case without trailing dot, or an IP address in canonical text
	Port uint16 // KindTCP: 1 to 65535
}

// Kubernetes returns the target that means the agent's own API server.
func Kubernetes() Target { return Target{Kind: KindKubernetes} }

// Gateway returns the target that means the agent's end of the gateway.
func Gateway() Target { return Target{Kind: KindGateway} }

// TCP returns the target for a host (name or IP address, no brackets) and port.
func TCP(host string, port uint16) (Target, error) {
	h, err := NormalizeHost(host)
	if err != nil {
		return Target{}, err
	}
	if port == 0 {
		return Target{}, fmt.Errorf("target %q: port must be between 1 and 65535", host)
	}
	return Target{Kind: KindTCP, Host: h, Port: port}, nil
}

// ParseTarget reads "kubernetes", "gateway" or "tcp:HOST:PORT"; an IPv6 address stands in
// brackets.
func ParseTarget(s string) (Target, error) {
	if len(s) > MaxTargetLen {
		return Target{}, fmt.Errorf("target is %d bytes long; at most %d are allowed", len(s), MaxTargetLen)
	}
	switch s {
	case "kubernetes":
		return Kubernetes(), nil
	case "gateway":
		return Gateway(), nil
	}
	rest, ok := strings.CutPrefix(s, "tcp:")
	if !ok {
		return Target{}, fmt.Errorf("target %q: want tcp:HOST:PORT or kubernetes", s)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: want tcp:HOST:PORT, an IPv6 address in brackets", s)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 {
		return Target{}, fmt.Errorf("target %q: port must be a number between 1 and 65535", s)
	}
	return TCP(host, uint16(p))
}

// String returns the text that ParseTarget reads.
func (t Target) String() string {
	switch t.Kind {
	case KindKubernetes:
		return "kubernetes"
	case KindGateway:
		return "gateway"
	case KindTCP:
		return "tcp:" + t.Address()
	default:
		return "invalid"
	}
}

// Address returns HOST:PORT as net.Dial wants it; only for KindTCP.
func (t Target) Address() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// NormalizeHost returns a host name in lower case without its trailing dot, or
// an IP address in canonical text (IPv4-mapped IPv6 unmapped). It refuses
// anything that is neither: control bytes, spaces, empty labels, zones.
func NormalizeHost(host string) (string, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return "", fmt.Errorf("host %q: zones are not allowed", host)
		}
		return addr.Unmap().String(), nil
	}
	h := strings.ToLower(strings.TrimSuffix(host, "."))
	if h == "" || len(h) > 253 {
		return "", fmt.Errorf("host %q: a name has 1 to 253 characters", host)
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("host %q: each label of a name has 1 to 63 characters", host)
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("host %q: %q is not allowed in a name", host, c)
			}
		}
	}
	if last := h[strings.LastIndexByte(h, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		// "127.1" and the like: resolvers read such names as addresses.
		return "", fmt.Errorf("host %q is neither a name nor an IP address", host)
	}
	return h, nil
}

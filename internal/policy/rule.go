package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"postern.dev/postern/internal/wire"
)

// maxRuleLen bounds the text of a rule, in bytes: a name of 253, a wildcard and
// a range of ports, with room to spare.
const maxRuleLen = 300

// examples ends every message about a rule that does not parse.
const examples = `examples: kubernetes, tcp:db.internal:5432, tcp:*.svc.cluster.local:443, tcp:10.0.0.0/8:5000-5999, tcp:[2001:db8::/32]:*`

type ruleKind uint8

const (
	ruleKubernetes ruleKind = iota + 1 // the agent's own API server
	ruleName                           // one exact name
	ruleSuffix                         // every name under a suffix
	ruleAddress                        // an address or a network
	ruleAny                            // every host
	ruleGateway                        // the agent's end of the gateway
)

// Rule allows something. Make one with ParseRule; the zero value allows
// nothing. Rules are comparable.
type Rule struct {
	kind     ruleKind
	host     string       // ruleName: the name; ruleSuffix: the suffix with its leading dot
	prefix   netip.Prefix // ruleAddress; never an IPv4-mapped one
	bare     bool         // ruleAddress: written as an address, without a prefix length
	low, top uint16       // ports, both included; 1 to 65535 for "*"
	text     string       // what String returns; of a rule that was parsed
}

// ParseRule reads a rule:
//
//	kubernetes                        the agent's own Kubernetes API server
//	gateway                           the agent's end of the gateway, which no wildcard covers
//	tcp:HOST:PORT                     one name or address (IPv6 in brackets)
//	tcp:*.SUFFIX:PORT                 every name under SUFFIX, at any depth, but not SUFFIX itself
//	tcp:ADDRESS/BITS:PORT             every address of a network (IPv6 in brackets)
//	tcp:*:PORT                        every host
//
// where PORT is a number, a range LOW-HIGH, or "*".
func ParseRule(s string) (Rule, error) {
	if len(s) > maxRuleLen {
		return Rule{}, fmt.Errorf("rule is %d bytes long; at most %d are allowed", len(s), maxRuleLen)
	}
	switch s {
	case "kubernetes":
		return Rule{kind: ruleKubernetes}, nil
	case "gateway":
		return Rule{kind: ruleGateway}, nil
	}
	rest, ok := strings.CutPrefix(s, "tcp:")
	if !ok {
		return Rule{}, fmt.Errorf("rule %q: want kubernetes or tcp:HOST:PORT; %s", s, examples)
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return Rule{}, fmt.Errorf("rule %q: the port is missing (a number, LOW-HIGH or *); %s", s, examples)
	}
	host, port := rest[:i], rest[i+1:]
	var r Rule
	if err := r.parseHost(host); err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w; %s", s, err, examples)
	}
	if err := r.parsePorts(port); err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w; %s", s, err, examples)
	}
	r.text = r.format()
	return r, nil
}

func (r *Rule) parseHost(host string) error {
	inner, closed := "", false
	if rest, ok := strings.CutPrefix(host, "["); ok {
		if inner, closed = strings.CutSuffix(rest, "]"); !closed {
			return fmt.Errorf("host %q has no closing bracket before the port", host)
		}
		if !strings.Contains(inner, ":") {
			return fmt.Errorf("brackets are for IPv6 addresses and networks, and %q is neither", inner)
		}
		host = inner
	} else if strings.Contains(host, ":") {
		return fmt.Errorf("write an IPv6 address or network in brackets, as [%s]", host)
	}
	switch {
	case host == "":
		return fmt.Errorf("the host is missing (* means every host)")
	case host == "*":
		r.kind = ruleAny
	case strings.Contains(host, "/"):
		return r.parseNetwork(host)
	case strings.HasPrefix(host, "*."):
		suffix, err := wire.NormalizeHost(host[2:])
		if err != nil {
			return err
		}
		if _, err := netip.ParseAddr(suffix); err == nil {
			return fmt.Errorf("%q: a wildcard stands before a name; for addresses write a network such as 10.0.0.0/8", host)
		}
		r.kind, r.host = ruleSuffix, "."+suffix
	case strings.Contains(host, "*"):
		return fmt.Errorf("%q: a wildcard stands only for all labels at the front, as in *.example.com", host)
	default:
		h, err := wire.NormalizeHost(host)
		if err != nil {
			return err
		}
		if a, err := netip.ParseAddr(h); err == nil {
			r.kind, r.bare, r.prefix = ruleAddress, true, netip.PrefixFrom(a, a.BitLen())
			return nil
		}
		r.kind, r.host = ruleName, h
	}
	return nil
}

func (r *Rule) parseNetwork(text string) error {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return fmt.Errorf("%q is not a network (ADDRESS/BITS)", text)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return fmt.Errorf("%q covers all of IPv4 and more; write the IPv4 network itself", text)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return fmt.Errorf("%q has bits set beyond its length; did you mean %s or %s?", text, m, p.Addr())
	}
	r.kind, r.prefix = ruleAddress, p
	return nil
}

func (r *Rule) parsePorts(text string) error {
	if text == "*" {
		r.low, r.top = 1, 65535
		return nil
	}
	low, top, ranged := strings.Cut(text, "-")
	var err error
	if r.low, err = parsePort(low); err != nil {
		return err
	}
	if r.top = r.low; !ranged {
		return nil
	}
	if r.top, err = parsePort(top); err != nil {
		return err
	}
	if r.top < r.low {
		return fmt.Errorf("the range of ports %q ends before it begins", text)
	}
	return nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || text[0] == '+' {
		return 0, fmt.Errorf("port %q: want a number between 1 and 65535, a range LOW-HIGH, or *", text)
	}
	return uint16(n), nil
}

// String returns the rule's canonical text, which ParseRule reads.
func (r Rule) String() string {
	if r.text != "" {
		return r.text
	}
	return r.format()
}

func (r Rule) format() string {
	var host string
	switch r.kind {
	case ruleKubernetes:
		return "kubernetes"
	case ruleGateway:
		return "gateway"
	case ruleName:
		host = r.host
	case ruleSuffix:
		host = "*" + r.host
	case ruleAny:
		host = "*"
	case ruleAddress:
		if host = r.prefix.String(); r.bare {
			host = r.prefix.Addr().String()
		}
		if r.prefix.Addr().Is6() {
			host = "[" + host + "]"
		}
	default:
		return "invalid"
	}
	return "tcp:" + host + ":" + r.ports()
}

func (r Rule) ports() string {
	switch {
	case r.low == 1 && r.top == 65535:
		return "*"
	case r.low == r.top:
		return strconv.Itoa(int(r.low))
	default:
		return strconv.Itoa(int(r.low)) + "-" + strconv.Itoa(int(r.top))
	}
}

// covers reports whether the rule is about port.
func (r Rule) covers(port uint16) bool { return r.low <= port && port <= r.top }

// matchesName reports whether the rule allows a host by its name.
func (r Rule) matchesName(host string) bool {
	switch r.kind {
	case ruleAny:
		return true
	case ruleName:
		return host == r.host
	case ruleSuffix:
		// Longer than the suffix, since the suffix begins with its dot.
		return len(host) > len(r.host) && strings.HasSuffix(host, r.host)
	default:
		return false
	}
}

// IsGateway reports whether the rule is about the agent's end of the gateway. That an
// owner allows by a switch alone (Settings.Gateway).
func (r Rule) IsGateway() bool { return r.kind == ruleGateway }

// MarshalText returns what String does, for JSON.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what ParseRule does.
func (r *Rule) UnmarshalText(b []byte) error {
	one, err := ParseRule(string(b))
	if err == nil {
		*r = one
	}
	return err
}

// Covers reports whether the rule is about a target, as far as can be said before
// the target is resolved: yes, or byAddress when it depends on the addresses that
// its name leads to. Unlike a Policy it makes no difference between ordinary
// addresses and loopback or metadata ones, for it allows nothing by itself.
func (r Rule) Covers(t wire.Target) (yes, byAddress bool) {
	switch {
	case r.kind == ruleKubernetes:
		return t.Kind == wire.KindKubernetes || t.Kind == wire.KindTCP && t.Port == 443 && namesKubernetes(t.Host), false
	case r.kind == ruleGateway:
		return t.Kind == wire.KindGateway, false
	case t.Kind != wire.KindTCP || !r.covers(t.Port):
		return false, false
	case r.kind == ruleAddress:
		if a, err := netip.ParseAddr(t.Host); err == nil {
			return r.prefix.Contains(a.Unmap()), false
		}
		return false, true
	default:
		return r.matchesName(t.Host), false
	}
}

// CoversAddr is Covers for an address that the target was found to lead to.
func (r Rule) CoversAddr(t wire.Target, a netip.AddrPort) bool {
	yes, byAddress := r.Covers(t)
	return yes || byAddress && r.covers(a.Port()) && r.prefix.Contains(a.Addr().Unmap())
}

// MustRule is ParseRule for rules that stand in the program; it panics at others.
func MustRule(s string) Rule {
	r, err := ParseRule(s)
	if err != nil {
		panic(err)
	}
	return r
}

package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"postern.dev/postern/internal/wire"
)

// Entry is one rule with what it does and for whom. The zero value allows nothing.
type Entry struct {
	Rule   Rule
	Deny   bool   // forbid what Rule covers, whatever any other entry allows
	From   []Whom // for whom it holds; empty: for everybody
	Origin string // where it stands, for people: "policy.yaml:7", "--allow"
}

// String returns the entry without its origin: "deny tcp:db:5432 from proxy:ci".
func (e Entry) String() string {
	verb := "allow "
	if e.Deny {
		verb = "deny "
	}
	return verb + e.Scope()
}

// Scope returns the rule and for whom it holds: "tcp:db:5432 from proxy:ci".
func (e Entry) Scope() string {
	if len(e.From) == 0 {
		return e.Rule.String()
	}
	from := make([]string, len(e.From))
	for i, who := range e.From {
		from[i] = who.String()
	}
	return e.Rule.String() + " from " + strings.Join(from, ", ")
}

func (e Entry) holdsFor(who Asker) bool {
	return len(e.From) == 0 || slices.ContainsFunc(e.From, who.Is)
}

func (e Entry) allows(kubernetes bool) Decision {
	return Decision{Allowed: true, Rule: e.Rule.String(), Origin: e.Origin, Kubernetes: kubernetes}
}

// Version returns a short hash of the entries. Replicas with the same rules in the
// same order have the same version, wherever the rules stand.
func (p *Policy) Version() string {
	h := sha256.New()
	for _, e := range p.Entries() {
		_, _ = fmt.Fprintln(h, e) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// denied returns the decision of the first deny rule that covers the target, by
// its name or, when a is valid, by that address. Rules that deny are read widely,
// where those that allow are read narrowly.
func (p *Policy) denied(t wire.Target, a netip.AddrPort) (Decision, bool) {
	if len(p.deny) == 0 {
		return Decision{}, false
	}
	if !a.IsValid() {
		if addr, err := netip.ParseAddr(t.Host); err == nil {
			a = netip.AddrPortFrom(addr.Unmap(), t.Port)
		}
	}
	for _, e := range p.deny {
		if p.forbids(e.Rule, t, a) {
			reason := "deny rule " + e.Rule.String() + " forbids " + t.String()
			if a.IsValid() && a.Addr().String() != t.Host {
				reason += " (" + a.Addr().String() + ")"
			}
			return Decision{Denied: true, Rule: e.Rule.String(), Origin: e.Origin, Reason: reason}, true
		}
	}
	return Decision{}, false
}

func (p *Policy) forbids(r Rule, t wire.Target, a netip.AddrPort) bool {
	if r.kind == ruleKubernetes {
		return t.Kind == wire.KindKubernetes || t.Kind == wire.KindGateway || p.isKubernetesName(t) ||
			a.IsValid() && p.isKubernetesAddr(t, a, nil)
	}
	if r.kind == ruleGateway {
		return t.Kind == wire.KindGateway
	}
	host, port := t.Host, t.Port
	if p.kube != nil && (t.Kind == wire.KindKubernetes || t.Kind == wire.KindGateway || p.isKubernetesName(t)) {
		// The API server answers to several names and ports: each one counts.
		if r.covers(p.kube.Port) && (r.matchesName(p.kube.Host) || p.kubeIP.IsValid() && p.inside(r, p.kubeIP)) {
			return true
		}
		if a.IsValid() {
			port = a.Port()
		}
	}
	if t.Kind == wire.KindTCP && (r.covers(t.Port) || r.covers(port)) && r.matchesName(host) {
		return true
	}
	return a.IsValid() && r.covers(a.Port()) && (r.kind == ruleAny || p.inside(r, a.Addr()))
}

// inside reports whether a network of the rule holds a (unmapped), or the IPv4
// address that a embeds.
func (p *Policy) inside(r Rule, a netip.Addr) bool {
	if r.kind != ruleAddress {
		return false
	}
	if r.prefix.Contains(a) {
		return true
	}
	v4, ok := p.classify.embedded(a)
	return ok && r.prefix.Contains(v4)
}

// Package policy decides what an agent may reach. It is the owner of the
// private network who speaks here: nothing is allowed that no rule allows, and
// a name that a rule allows must not lead to the agent's own machine or to a
// cloud's metadata service. The decisions are pure: package reach resolves and
// dials.
//
// A target is checked twice: by name before it is resolved (Check), and then
// each address before it is dialled (CheckAddr). Rules allow or deny, for
// everybody or for some askers (Entry); what one deny rule forbids no other rule
// allows. They come from settings and from a file (ParseFile), whose changes a
// Watcher finds.
package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"postern.dev/postern/internal/wire"
)

// KubernetesAPI is where the agent's own API server listens.
type KubernetesAPI struct {
	Host string // an IP address or a DNS name
	Port uint16
}

// KubernetesFromEnv returns what KUBERNETES_SERVICE_HOST and
// KUBERNETES_SERVICE_PORT say, as they stand in every pod. It returns nil
// without error outside of a pod.
func KubernetesFromEnv(getenv func(string) string) (*KubernetesAPI, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" {
		return nil, nil
	}
	if port == "" {
		port = "443"
	}
	n, err := parsePort(port)
	if err != nil {
		return nil, fmt.Errorf("read KUBERNETES_SERVICE_PORT: %w", err)
	}
	h, err := wire.NormalizeHost(host)
	if err != nil {
		return nil, fmt.Errorf("read KUBERNETES_SERVICE_HOST: %w", err)
	}
	return &KubernetesAPI{Host: h, Port: n}, nil
}

// Policy is a set of rules. It is immutable and safe for concurrent use; its
// owner swaps it as a whole. A nil Policy allows nothing.
type Policy struct {
	allow    []Entry
	deny     []Entry
	kube     *KubernetesAPI
	kubeIP   netip.Addr // valid when kube.Host is an address
	classify *classifier
}

// New returns the policy that allows what any one of rules allows, to everybody.
// kube says where the agent's own API server is; nil if it has none.
func New(rules []Rule, kube *KubernetesAPI) *Policy {
	entries := make([]Entry, len(rules))
	for i, r := range rules {
		entries[i] = Entry{Rule: r}
	}
	return NewOf(entries, kube)
}

// NewOf returns the policy of entries, whose order means nothing but which of
// several rules a Decision tells of.
func NewOf(entries []Entry, kube *KubernetesAPI) *Policy {
	p := &Policy{classify: newClassifier()}
	for _, e := range entries {
		if e.Deny {
			p.deny = append(p.deny, e)
		} else {
			p.allow = append(p.allow, e)
		}
	}
	if kube != nil {
		k := *kube
		p.kube = &k
		if a, err := netip.ParseAddr(k.Host); err == nil {
			p.kubeIP = a.Unmap()
		}
	}
	return p
}

// Rules returns the rules that allow something, to whomever, for people to read.
func (p *Policy) Rules() []Rule {
	if p == nil {
		return nil
	}
	rules := make([]Rule, len(p.allow))
	for i, e := range p.allow {
		rules[i] = e.Rule
	}
	return rules
}

// Entries returns what the policy is made of: what it allows, then what it denies.
func (p *Policy) Entries() []Entry {
	if p == nil {
		return nil
	}
	return slices.Concat(p.allow, p.deny)
}

// For returns the policy as it stands for one asker: the entries that hold for
// others are left out.
func (p *Policy) For(who Asker) *Policy {
	limited := func(e Entry) bool { return len(e.From) > 0 }
	if p == nil || !slices.ContainsFunc(p.allow, limited) && !slices.ContainsFunc(p.deny, limited) {
		return p
	}
	others := func(e Entry) bool { return !e.holdsFor(who) }
	q := *p
	q.allow = slices.DeleteFunc(slices.Clone(p.allow), others)
	q.deny = slices.DeleteFunc(slices.Clone(p.deny), others)
	return &q
}

// Kubernetes returns where the agent's own API server is, or nil.
func (p *Policy) Kubernetes() *KubernetesAPI {
	if p == nil || p.kube == nil {
		return nil
	}
	k := *p.kube
	return &k
}

// Decision is the answer of a policy.
type Decision struct {
	Allowed bool
	Denied  bool   // a deny rule forbids it
	Rule    string // the rule that allowed it, or the one that forbids it
	Origin  string // where that rule stands: Entry.Origin
	Reason  string // why it is refused: a phrase for people, without a full stop
	Missing string // the narrowest rule that would allow it; empty when none would help
	Hint    string // what else to do about a refusal; it stands for Missing when it is set

	// NeedsAddress is set by Check when no rule allows the host by its name
	// but one may by its addresses: CheckAddr decides alone.
	NeedsAddress bool

	// Kubernetes is set when it is the rule "kubernetes" that allows the
	// target: then Policy.Kubernetes says what to dial, and not the name,
	// which may mean something else to the agent's resolver.
	Kubernetes bool
}

// Check decides on a target before it is resolved. For an address the decision
// is the final one.
func (p *Policy) Check(t wire.Target) Decision {
	if p == nil {
		p = New(nil, nil)
	}
	switch t.Kind {
	case wire.KindKubernetes, wire.KindTCP, wire.KindGateway:
	default:
		return Decision{Reason: "the target is of an unknown kind"}
	}
	if d, denied := p.denied(t, netip.AddrPort{}); denied {
		return d
	}
	switch t.Kind { //nolint:exhaustive // the others are below
	case wire.KindKubernetes:
		return p.checkKubernetes()
	case wire.KindGateway:
		return p.checkGateway()
	}
	if a, err := netip.ParseAddr(t.Host); err == nil {
		return p.CheckAddr(t, netip.AddrPortFrom(a, t.Port))
	}
	var byAddress *Entry
	for i, e := range p.allow {
		switch r := e.Rule; {
		case r.kind == ruleKubernetes && p.isKubernetesName(t):
			return e.allows(true)
		case !r.covers(t.Port):
		case r.matchesName(t.Host):
			return e.allows(false)
		case r.kind == ruleAddress && byAddress == nil:
			byAddress = &p.allow[i]
		}
	}
	if byAddress != nil {
		d := byAddress.allows(false)
		d.NeedsAddress = true
		return d
	}
	return Decision{Reason: fmt.Sprintf("no rule allows %s", t), Missing: p.missing(t)}
}

// CheckAddr decides on one address a of the target t after resolving. Loopback,
// link-local, multicast, unspecified and metadata addresses, also inside an
// IPv6 address that embeds them, are refused unless a rule names the address or
// a network no wider than their kind. The rule tcp:localhost:PORT allows
// loopback for that very name.
func (p *Policy) CheckAddr(t wire.Target, a netip.AddrPort) Decision {
	if p == nil {
		p = New(nil, nil)
	}
	if t.Kind == wire.KindGateway {
		return p.Check(t) // it leads to no address
	}
	addr := a.Addr()
	if !addr.IsValid() || addr.Zone() != "" || a.Port() == 0 {
		return Decision{Reason: fmt.Sprintf("%s is not an address to connect to", a)}
	}
	addr = addr.Unmap()
	a = netip.AddrPortFrom(addr, a.Port())
	sp := p.classify.special(addr)
	if asked, err := netip.ParseAddr(t.Host); err == nil && asked.Unmap() != addr {
		return Decision{Reason: fmt.Sprintf("%s is not the address that was asked for", addr)}
	}

	if d, denied := p.denied(t, a); denied {
		return d
	}

	var nearMiss string
	for _, e := range p.allow {
		switch r := e.Rule; {
		case r.kind == ruleKubernetes:
			if p.isKubernetesAddr(t, a, sp) {
				return e.allows(true)
			}
		case !r.covers(a.Port()):
		case r.names(addr, sp):
			return e.allows(false)
		case t.Kind == wire.KindTCP && t.Port == a.Port() && r.matchesName(t.Host):
			if sp == nil || r.kind == ruleName && r.host == "localhost" && addr.IsLoopback() {
				return e.allows(false)
			}
			nearMiss = r.String()
		}
	}
	d := Decision{Missing: addressRule(a)}
	literal := t.Host == addr.String()
	switch {
	case t.Kind == wire.KindKubernetes && sp == nil:
		d.Reason = fmt.Sprintf("%s is not the address of this agent's Kubernetes API server", a)
		d.Missing = ""
	case sp != nil && literal:
		d.Reason = fmt.Sprintf("%s is %s, which only a rule that names it allows", addr, sp.what)
	case sp != nil && nearMiss != "":
		d.Reason = fmt.Sprintf("%s leads to %s, %s, which rule %s does not allow", t.Host, addr, sp.what, nearMiss)
	case sp != nil:
		d.Reason = fmt.Sprintf("%s leads to %s, %s, which only a rule that names it allows", t.Host, addr, sp.what)
	case literal:
		d.Reason = fmt.Sprintf("no rule allows %s", t)
	default:
		d.Reason = fmt.Sprintf("no rule allows %s nor its address %s", t, addr)
		d.Missing = p.missing(t)
	}
	return d
}

func (p *Policy) checkKubernetes() Decision {
	i := slices.IndexFunc(p.allow, func(e Entry) bool { return e.Rule.kind == ruleKubernetes })
	if i < 0 {
		return Decision{Reason: "no rule allows kubernetes", Missing: "kubernetes"}
	}
	if p.kube == nil {
		return Decision{Reason: "the agent does not run in a Kubernetes pod, so it has no API server of its own"}
	}
	return p.allow[i].allows(true)
}

// checkGateway decides on the agent's end of the gateway.
func (p *Policy) checkGateway() Decision {
	i := slices.IndexFunc(p.allow, func(e Entry) bool { return e.Rule.IsGateway() })
	if i < 0 {
		return Decision{Reason: "the agent's owner has not switched the gateway on", Hint: "start the agent with --gateway"}
	}
	return p.allow[i].allows(false)
}

// isKubernetesName reports whether t is one of the names that every cluster
// gives its API server.
func (p *Policy) isKubernetesName(t wire.Target) bool {
	if p.kube == nil || t.Port != 443 && t.Port != p.kube.Port {
		return false
	}
	return namesKubernetes(t.Host) || t.Host == p.kube.Host && t.Port == p.kube.Port
}

// namesKubernetes reports whether every cluster calls its API server so.
func namesKubernetes(host string) bool {
	switch host {
	case "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local":
		return true
	default:
		return false
	}
}

// isKubernetesAddr reports whether a is the API server that t asks for: its
// very address, when that is known, and otherwise an ordinary address that the
// configured name resolved to.
func (p *Policy) isKubernetesAddr(t wire.Target, a netip.AddrPort, sp *special) bool {
	if p.kube == nil || a.Port() != p.kube.Port {
		return false
	}
	if p.kubeIP.IsValid() {
		return a.Addr() == p.kubeIP
	}
	asked := t.Kind == wire.KindKubernetes || p.isKubernetesName(t)
	return asked && (sp == nil || p.kube.Host == "localhost" && a.Addr().IsLoopback())
}

// missing returns the rule to suggest for t.
func (p *Policy) missing(t wire.Target) string {
	if p.isKubernetesName(t) {
		return "kubernetes"
	}
	return t.String()
}

func addressRule(a netip.AddrPort) string {
	return "tcp:" + net.JoinHostPort(a.Addr().String(), strconv.Itoa(int(a.Port())))
}

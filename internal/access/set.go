package access

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// maxShared bounds the lists of grants that a Set remembers for agents to share.
const maxShared = 64

// Set is the grants of an organization, or those of them that concern one agent. It
// is immutable and safe for concurrent use; its owner swaps it as a whole. A nil Set
// grants nothing.
type Set struct {
	grants []Grant
	to     map[policy.Whom][]int // indices of grants, in their order

	mu     sync.Mutex
	shared map[string][]Grant // what Concerning returned, by which of grants it is: a bit each
}

// New returns the set of some grants. The first of several that allow the same is
// the one that a Decision names.
func New(grants []Grant) *Set {
	s := &Set{grants: grants, to: make(map[policy.Whom][]int)}
	for i, g := range grants {
		s.to[g.To] = append(s.to[g.To], i)
	}
	return s
}

// Grants returns what the set is made of. It is not to be changed.
func (s *Set) Grants() []Grant {
	if s == nil {
		return nil
	}
	return s.grants
}

// Concerning returns the grants that concern an agent and have not expired, without
// what an agent need not know: whom else they concern, who made them and why. Agents
// that the same grants concern get the same slice, mostly, so that what is made of it
// can be shared as well. It is not to be changed.
func (s *Set) Concerning(a Agent, now time.Time) []Grant {
	if s == nil {
		return nil
	}
	which, n := make([]byte, (len(s.grants)+7)/8), 0
	for i := range s.grants {
		if g := &s.grants[i]; g.Agent.Chooses(a) && !g.Expired(now) {
			which[i/8] |= 1 << (i % 8)
			n++
		}
	}
	if n == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if out := s.shared[string(which)]; out != nil {
		return out
	}
	out := make([]Grant, 0, n)
	for i, g := range s.grants {
		if which[i/8]&(1<<(i%8)) != 0 {
			out = append(out, Grant{ID: g.ID, To: g.To, Targets: g.Targets, Expires: g.Expires})
		}
	}
	if s.shared == nil || len(s.shared) >= maxShared {
		s.shared = make(map[string][]Grant)
	}
	s.shared[string(which)] = out
	return out
}

// NextExpiry returns when the next grant expires after a time, or zero if none does.
func (s *Set) NextExpiry(now time.Time) time.Time {
	var next time.Time
	for _, g := range s.Grants() {
		if g.Expires.After(now) && (next.IsZero() || g.Expires.Before(next)) {
			next = g.Expires
		}
	}
	return next
}

// Decision is what grants say of a stream.
type Decision struct {
	Allowed bool
	Grant   string    // ID of the grant that decides; empty when none allows it
	Rule    string    // the target of that grant which covers the stream
	Until   time.Time // when that grant expires; zero: never
	Reason  string    // why it is refused: a phrase for people, without a full stop
	Hint    string    // the command that would allow it

	// NeedsAddress is set by Check when it depends on the addresses that the
	// target leads to: CheckAddr decides.
	NeedsAddress bool
}

// View is what the grants of a set say to one asker at one agent, at one time. It is
// immutable.
type View struct {
	who    policy.Asker
	agent  string
	grants []*Grant // those that name the asker, choose the agent, and have not expired
}

// For returns what the set says to an asker at an agent. In a set of those that
// concern the agent, whose grants choose no agents, all count. A person is let in as a
// user or by a group, never by the name of a proxy: people choose the names of theirs.
func (s *Set) For(who policy.Asker, a Agent, now time.Time) View {
	v := View{who: who, agent: a.ID}
	if s == nil {
		return v
	}
	for name := range who.Names() {
		if name.Kind == identity.KindProxy && who.Principal.Kind == identity.KindUser {
			continue
		}
		for _, i := range s.to[name] {
			if g := &s.grants[i]; (g.Agent.IsZero() || g.Agent.Chooses(a)) && !g.Expired(now) {
				v.grants = append(v.grants, g)
			}
		}
	}
	return v
}

// Check decides on a target before it is resolved.
func (v View) Check(t wire.Target) Decision {
	var perhaps Decision
	for _, g := range v.grants {
		for _, r := range g.Targets {
			yes, byAddress := r.Covers(t)
			if yes {
				return Decision{Allowed: true, Grant: g.ID, Rule: r.String(), Until: g.Expires}
			}
			if byAddress && !perhaps.Allowed {
				perhaps = Decision{Allowed: true, Grant: g.ID, Rule: r.String(), Until: g.Expires, NeedsAddress: true}
			}
		}
	}
	if perhaps.Allowed {
		return perhaps
	}
	return v.refuse(t, t.String())
}

// CheckAddr decides on one address that a target leads to.
func (v View) CheckAddr(t wire.Target, a netip.AddrPort) Decision {
	for _, g := range v.grants {
		for _, r := range g.Targets {
			if r.CoversAddr(t, a) {
				return Decision{Allowed: true, Grant: g.ID, Rule: r.String(), Until: g.Expires}
			}
		}
	}
	what := t.String()
	if at := a.Addr().Unmap().String(); a.IsValid() && at != t.Host {
		what += " at " + at
	}
	return v.refuse(t, what)
}

func (v View) refuse(t wire.Target, what string) Decision {
	return Decision{
		Reason: fmt.Sprintf("the hub's access grants do not let %s reach %s on %s", v.who, v.agent, what),
		Hint:   v.hint(t),
	}
}

// hint returns the command that would allow a target.
func (v View) hint(t wire.Target) string {
	to := v.who.String()
	if w, err := policy.ParseWhom(to); err != nil || w.Name == policy.Everyone {
		return "its certificate does not tell who enrolled the proxy; start the proxy again"
	}
	return fmt.Sprintf("an administrator can allow it: postern access grant --to %s --agent %s --target %s", shellWord(to), v.agent, shellWord(t.String()))
}

// shellWord quotes what a shell would not take as one plain word.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.,:/@%+=", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

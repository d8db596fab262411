package proxy

import (
	"strings"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Router finds the agent and target of a request. In order of precedence, the
// agent is
//
//  1. the one in the host name, HOST.AGENT.SUFFIX; the target is then HOST,
//  2. the one in the proxy user name: AGENT, or where Organizations is set
//     ORG/AGENT or ORG.AGENT (names have no dots of their own),
//  3. the default.
//
// The organization is the one in the user name, which the password is checked
// against, or else the default; a host name never changes it.
//
// HOST may be a name of any depth or an IPv4 address. The host
// "kubernetes.AGENT.SUFFIX" needs no case of its own: it is the target
// tcp:kubernetes:443, which an agent knows as its own API server.
type Router struct {
	Suffix        string // such as "postern.internal"; empty turns routing by host name off
	Organization  string // the default organization
	Agent         string // the default agent; empty for none
	Organizations bool   // user names may carry an organization
}

// User reads a proxy user name. The Agent of the result is empty when the name
// does not choose one (an empty name, "ORG/").
func (r Router) User(name string) (AgentRef, error) {
	ref := AgentRef{Organization: r.Organization, Agent: name}
	if r.Organizations {
		// Some clients leave the escape of a URL's user name in place.
		plain := strings.Replace(strings.Replace(name, "%2F", "/", 1), "%2f", "/", 1)
		org, agent, ok := strings.Cut(plain, "/")
		if !ok {
			org, agent, ok = strings.Cut(plain, ".")
		}
		if ok {
			ref = AgentRef{Organization: org, Agent: agent}
			if err := identity.ValidateName("organization", org); err != nil {
				return AgentRef{}, badRequest("proxy user name: %v", err)
			}
		}
	}
	if ref.Agent == "" {
		return ref, nil
	}
	if err := identity.ValidateName("agent ID", ref.Agent); err != nil {
		f := badRequest("proxy user name: %v", err)
		if r.Organizations {
			return AgentRef{}, f.WithHint("the user name of this proxy is AGENT or ORG/AGENT")
		}
		return AgentRef{}, f.WithHint("the user name of this proxy is the agent's ID")
	}
	return ref, nil
}

// Route returns the agent and target for a request of a client, whose user name
// chose the agent user, for host and port. Errors are *wire.Failure.
func (r Router) Route(user AgentRef, host string, port uint16) (AgentRef, wire.Target, error) {
	ref := user
	if ref.Organization == "" {
		ref.Organization = r.Organization
	}
	if ref.Agent == "" {
		ref.Agent = r.Agent
	}
	if inner, agent, ok, err := r.split(host); err != nil {
		return AgentRef{}, wire.Target{}, err
	} else if ok {
		host, ref.Agent = inner, agent
	}
	target, err := wire.TCP(host, port)
	if err != nil {
		return AgentRef{}, wire.Target{}, badRequest("%v", err)
	}
	if ref.Agent == "" {
		f := badRequest("the request for %s does not say which agent to use", target)
		if r.Suffix != "" {
			return AgentRef{}, wire.Target{}, f.WithHint("give the agent's ID as proxy user name, or use the host %s.AGENT.%s", target.Host, r.Suffix)
		}
		return AgentRef{}, wire.Target{}, f.WithHint("give the agent's ID as proxy user name")
	}
	return ref, target, nil
}

// split takes HOST.AGENT.SUFFIX apart.
func (r Router) split(host string) (inner, agent string, ok bool, err error) {
	if r.Suffix == "" {
		return "", "", false, nil
	}
	h := strings.TrimSuffix(host, ".")
	cut := len(h) - len(r.Suffix)
	if cut < 0 || !strings.EqualFold(h[cut:], r.Suffix) || cut > 0 && h[cut-1] != '.' {
		return "", "", false, nil
	}
	if cut > 0 {
		h = h[:cut-1]
		if i := strings.LastIndexByte(h, '.'); i > 0 && h[i-1] != '.' {
			agent = strings.ToLower(h[i+1:])
			if err := identity.ValidateName("agent ID", agent); err != nil {
				return "", "", false, badRequest("host name: %v", err)
			}
			return h[:i], agent, true, nil
		}
	}
	return "", "", false, badRequest("the host %q names no target", host).
		WithHint("the form is HOST.AGENT.%s, for example kubernetes.AGENT.%s", r.Suffix, r.Suffix)
}

func badRequest(format string, args ...any) *wire.Failure {
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, format, args...)
}

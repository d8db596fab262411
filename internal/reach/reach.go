// Package reach opens connections from an agent to the targets of its private
// network. It resolves names where the agent stands, asks the agent's policy
// about the name and about every address, and dials exactly the addresses that
// were checked, several at a time when they are slow (RFC 8305). Its errors say
// which leg failed: policy, DNS or TCP.
package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// Defaults of a Dialer.
const (
	DefaultTimeout = 10 * time.Second
	DefaultStagger = 250 * time.Millisecond // RFC 8305 section 5, "Connection Attempt Delay"
)

// maxAddresses bounds how many addresses of one name are tried.
const maxAddresses = 32

// Resolver finds the addresses of a name; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Dialer dials targets. Its fields must not change once it is in use; Dial is
// safe for concurrent use.
type Dialer struct {
	// Policy returns the policy of the moment. It is asked once per Dial, so
	// that one dial is judged by one policy. A nil policy allows nothing.
	Policy func() *policy.Policy

	// Resolver finds addresses; nil means the system's.
	Resolver Resolver

	// Connect opens a connection to one address, and must return soon after
	// ctx ends; nil means TCP with TCP_NODELAY and keep-alive probes.
	Connect func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

	// Timeout bounds a Dial, resolving included; 0 means DefaultTimeout.
	Timeout time.Duration

	// Permit says how the agent's owner would allow what a rule says, for the hint of a
	// refusal; nil names the flag --allow.
	Permit func(rule string) string

	// Stagger is how long one address may take before the next one is tried
	// beside it; 0 means DefaultStagger.
	Stagger time.Duration
}

// Dial opens a connection to t: a *net.TCPConn, unless Connect says otherwise.
// Errors are *wire.Failure with LegPolicy, LegDNS or LegTCP.
func (d *Dialer) Dial(ctx context.Context, t wire.Target) (net.Conn, error) {
	return d.DialUnder(ctx, d.Policy(), t)
}

// Judge decides about targets as a *policy.Policy does, which is one.
type Judge interface {
	Check(wire.Target) policy.Decision
	CheckAddr(wire.Target, netip.AddrPort) policy.Decision
	Kubernetes() *policy.KubernetesAPI
}

// DialUnder is Dial under a given judge, as when the policy is not the same for
// everybody, or not the only one.
func (d *Dialer) DialUnder(ctx context.Context, p Judge, t wire.Target) (net.Conn, error) {
	timeout := d.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok { // the caller's may come first
		timeout = time.Until(deadline).Round(time.Millisecond)
	}

	decision := p.Check(t)
	if !decision.Allowed {
		return nil, d.denied(decision)
	}
	if t.Kind == wire.KindGateway {
		return nil, wire.Fail(wire.LegAgent, wire.CodeBadRequest, "the gateway is not dialled")
	}
	host, port := t.Host, t.Port
	if api := p.Kubernetes(); decision.Kubernetes && api != nil {
		host, port = api.Host, api.Port
	}
	addrs, err := d.resolve(ctx, host, timeout)
	if err != nil {
		return nil, err
	}
	allowed := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		ap := netip.AddrPortFrom(a.Unmap(), port)
		if verdict := p.CheckAddr(t, ap); verdict.Allowed {
			allowed = append(allowed, ap)
		} else {
			decision = verdict // the last refusal, should all be refused
		}
	}
	if len(allowed) == 0 {
		return nil, d.denied(decision)
	}
	return d.race(ctx, attempt{name: host, port: port, timeout: timeout}, interleave(allowed))
}

func (d *Dialer) denied(decision policy.Decision) *wire.Failure {
	f := Denied(decision)
	if d.Permit != nil && decision.Missing != "" {
		f.Hint = d.Permit(decision.Missing)
	}
	return f
}

// Denied returns the failure for a decision that does not allow a target.
func Denied(decision policy.Decision) *wire.Failure {
	f := wire.Fail(wire.LegPolicy, wire.CodeDenied, "%s", decision.Reason)
	switch {
	case decision.Hint != "":
		return f.WithHint("%s", decision.Hint)
	case decision.Missing != "":
		return f.WithHint("start the agent with --allow %s", decision.Missing)
	}
	return f
}

// resolve returns at least one address of host, or a *wire.Failure.
func (d *Dialer) resolve(ctx context.Context, host string, timeout time.Duration) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	var r Resolver = net.DefaultResolver
	if d.Resolver != nil {
		r = d.Resolver
	}
	addrs, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, lookupFailure(ctx, host, timeout, err)
	}
	if len(addrs) == 0 {
		return nil, notFound(host)
	}
	return addrs[:min(len(addrs), maxAddresses)], nil
}

func notFound(host string) *wire.Failure {
	return wire.Fail(wire.LegDNS, wire.CodeNameNotFound, "the agent's resolver knows no address of %s", host).
		WithHint("check the name, and that it resolves where the agent runs")
}

func lookupFailure(ctx context.Context, host string, timeout time.Duration, err error) error {
	var dns *net.DNSError
	switch {
	case errors.Is(context.Cause(ctx), context.Canceled):
		return wire.Fail(wire.LegDNS, wire.CodeCanceled, "the lookup of %s was given up", host).WithCause(err)
	case errors.As(err, &dns) && dns.IsNotFound && !dns.IsTimeout:
		return notFound(host).WithCause(err)
	case ctx.Err() != nil:
		return wire.Fail(wire.LegDNS, wire.CodeTimeout, "the agent's resolver did not answer about %s within %s", host, timeout).
			WithHint("check the DNS server that the agent uses").WithCause(err)
	case errors.As(err, &dns) && dns.IsTimeout:
		return wire.Fail(wire.LegDNS, wire.CodeTimeout, "the agent's resolver did not answer about %s in time", host).
			WithHint("check the DNS server that the agent uses").WithCause(err)
	default:
		return wire.Fail(wire.LegDNS, wire.CodeNameFailed, "the agent could not resolve %s: %s", host, reason(err)).
			WithHint("check the DNS server that the agent uses").WithCause(err)
	}
}

// reason returns what went wrong without the parts that the text around it
// says already.
func reason(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.Err
	}
	return err.Error()
}

// interleave alternates between the address families, beginning with the
// family that the resolver put first (RFC 8305 section 4).
func interleave(addrs []netip.AddrPort) []netip.AddrPort {
	var first, second []netip.AddrPort
	for _, a := range addrs {
		if a.Addr().Is4() == addrs[0].Addr().Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	out := make([]netip.AddrPort, 0, len(addrs))
	for len(first) > 0 || len(second) > 0 {
		if len(first) > 0 {
			out, first = append(out, first[0]), first[1:]
		}
		if len(second) > 0 {
			out, second = append(out, second[0]), second[1:]
		}
	}
	return out
}

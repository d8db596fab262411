package config

import (
	"fmt"
	"strings"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Forward is a local address whose connections all go to one target.
type Forward struct {
	Listen       string // HOST:PORT to listen on
	Organization string // empty for the proxy's own, or the hub's default
	Agent        string
	Target       wire.Target
}

// ParseForward reads ADDR=AGENT/TARGET, where TARGET is tcp:HOST:PORT or
// kubernetes. On a hub, which serves all organizations, ORG/AGENT may stand for
// AGENT.
func ParseForward(s string) (Forward, error) {
	const form = "want ADDR=AGENT/tcp:HOST:PORT, for example 127.0.0.1:5432=office/tcp:db.example.org:5432"
	listen, rest, ok := strings.Cut(s, "=")
	if !ok {
		return Forward{}, fmt.Errorf("forward %q: %s", s, form)
	}
	slash := strings.LastIndexByte(rest, '/')
	if slash < 0 {
		return Forward{}, fmt.Errorf("forward %q: no agent is named; %s", s, form)
	}
	f := Forward{Listen: listen, Agent: rest[:slash]}
	if org, agent, ok := strings.Cut(f.Agent, "/"); ok {
		f.Organization, f.Agent = org, agent
		if err := identity.ValidateName("organization", org); err != nil {
			return Forward{}, fmt.Errorf("forward %q: %w", s, err)
		}
	}
	if problem := checkListen(listen); problem != "" {
		return Forward{}, fmt.Errorf("forward %q: %q %s; %s", s, listen, problem, form)
	}
	if err := identity.ValidateName("agent ID", f.Agent); err != nil {
		return Forward{}, fmt.Errorf("forward %q: %w", s, err)
	}
	var err error
	if f.Target, err = wire.ParseTarget(rest[slash+1:]); err != nil {
		return Forward{}, fmt.Errorf("forward %q: %w", s, err)
	}
	if f.Target == wire.Gateway() {
		return Forward{}, fmt.Errorf("forward %q: the gateway of an agent is for the hub alone; use the hub's URL", s)
	}
	return f, nil
}

// String returns the text that ParseForward reads.
func (f Forward) String() string {
	agent := f.Agent
	if f.Organization != "" {
		agent = f.Organization + "/" + agent
	}
	return f.Listen + "=" + agent + "/" + f.Target.String()
}

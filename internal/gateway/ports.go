package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/wire"
)

// Bounds of asking clusters for the numbers of ports.
const (
	portFor    = 10 * time.Second // a number is good
	noPortFor  = 2 * time.Second  // that there is none
	portTime   = 10 * time.Second
	maxPorts   = 4096 // answers that are remembered
	maxAsking  = 64   // questions at once
	maxService = 1 << 20
)

// errNoPort says that there is no such service, or that it has no such port.
var errNoPort = errors.New("there is no such port")

// port is a port of a service by its name.
type port struct {
	cluster                  clusterKey
	namespace, service, name string
}

// ports knows the numbers of ports. Grants and rules are about numbers, so the hub has
// to know one before it judges; what was judged is what the agent dials.
type ports struct {
	ask   func(organization, cluster string) Asker
	known *recall[port, uint16]
}

func newPorts(ask func(organization, cluster string) Asker) *ports {
	return &ports{ask: ask, known: newRecall[port, uint16](maxAsking, maxPorts, nil)}
}

// number returns the number of a port, for somebody. Errors are errNoPort or a
// *wire.Failure.
func (p *ports) number(ctx context.Context, asker string, of port) (uint16, error) {
	n, err := p.known.get(ctx, asker, of, portTime, func(ctx context.Context) (uint16, time.Duration, error) {
		switch n, err := p.read(ctx, of); {
		case err == nil:
			return n, portFor, nil
		case errors.Is(err, errNoPort):
			return 0, noPortFor, err
		default:
			return 0, 0, err // it may be better already
		}
	})
	if errors.Is(err, errBusy) {
		return 0, wire.Fail(wire.LegHub, wire.CodeOverloaded, "the numbers of too many ports are being asked for").WithHint("write the port's number, or try again")
	}
	return n, err
}

// read reads the service, with the service account of the cluster's agent.
func (p *ports) read(ctx context.Context, of port) (uint16, error) {
	fail := func(leg wire.Leg, code wire.Code, why string) error {
		return wire.Fail(leg, code, "the number of port %s of service %s/%s is not known: %s", of.name, of.namespace, of.service, why).WithHint("write the port's number")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentHost+"/api/v1/namespaces/"+of.namespace+"/services/"+of.service, nil)
	if err != nil {
		return 0, fail(wire.LegHub, wire.CodeInternal, err.Error())
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "postern")
	res, err := p.ask(of.cluster.organization, of.cluster.agent)(r)
	if err != nil {
		f := wire.AsFailure(err, wire.LegAgent)
		return 0, fail(f.Leg, f.Code, f.Text)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxService))
	switch {
	case err != nil:
		return 0, fail(wire.LegAgent, wire.CodeLost, err.Error())
	case res.StatusCode == http.StatusNotFound:
		return 0, errNoPort
	case res.StatusCode == http.StatusForbidden:
		return 0, wire.Fail(wire.LegTarget, wire.CodeDenied, "service %s/%s is asked for by the name of its port, %s, and the agent may not look its number up",
			of.namespace, of.service, of.name).WithHint("write the port's number, or have the agent's owner let its service account get services")
	case res.StatusCode != http.StatusOK:
		return 0, fail(wire.LegTarget, wire.CodeUnreachable, "the cluster answered "+res.Status)
	}
	var service struct {
		Kind string `json:"kind"`
		Spec struct {
			Ports []struct {
				Name     string `json:"name"`
				Protocol string `json:"protocol"`
				Port     uint16 `json:"port"`
			} `json:"ports"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(text, &service); err != nil || service.Kind != "Service" {
		return 0, fail(wire.LegTarget, wire.CodeProtocol, "the cluster's answer is no Service")
	}
	for _, one := range service.Spec.Ports {
		if one.Name == of.name && one.Port != 0 && (one.Protocol == "" || one.Protocol == "TCP") {
			return one.Port, nil
		}
	}
	return 0, errNoPort
}

// lookUp puts the number of the service's port in place of its name. Whoever may not
// reach it is not told whether there is one: see notExposed.
func (c *call) lookUp(p *ports) error {
	if c.url.Service == nil || c.target.Kind != 0 {
		return nil
	}
	s := *c.url.Service
	n, err := p.number(c.ctx, c.caller.Principal.String(), port{clusterKey{c.organization, c.url.Cluster}, s.Namespace, s.Name, s.Port})
	if errors.Is(err, errNoPort) {
		return c.notExposed(wire.Fail(wire.LegPolicy, wire.CodeDenied, "there is no port of that name"))
	}
	if err != nil {
		return err
	}
	s.Port = strconv.Itoa(int(n))
	c.url.Service = &s
	c.target, _ = s.Target()
	return nil
}

// notExposed words the refusal of a service as people look for it. Of a port by name it
// says the same whether there is none, or none for this caller.
func (c *call) notExposed(err error) error {
	f := wire.AsFailure(err, wire.LegHub)
	if c.url.Service == nil || f.Code != wire.CodeDenied {
		return err
	}
	const refusal = "service %s is not in the exposed services allowlist: "
	if c.portName == "" {
		return wire.Fail(f.Leg, f.Code, refusal+"%s", c.url.Service, f.Text).WithHint("%s", f.Hint).WithCause(err)
	}
	return wire.Fail(wire.LegPolicy, wire.CodeDenied, refusal+"it has no port named %s that %s may reach", c.url.Service, c.portName, c.caller.Principal).
		WithHint("with the port's number the message says which access grant it takes: %s", serviceTarget(*c.url.Service)).WithCause(err)
}

// serviceTarget returns the target of a service without its port.
func serviceTarget(s kubeurl.Service) string { return "tcp:" + s.Host() + ":PORT" }

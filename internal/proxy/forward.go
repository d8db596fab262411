package proxy

import (
	"fmt"
	"log/slog"
	"net"
	"sync"

	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// PortForward is a front end without a protocol of its own: every connection
// goes to one target through one agent. What fails can be told in one way only,
// a reset; the log says why.
type PortForward struct {
	*Server
	to    route
	early sync.Pool // of *[maxForwardEarly]byte
}

// ForwardTarget says where a PortForward leads.
type ForwardTarget struct {
	Agent  AgentRef // an empty Agent or Organization means the Router's default
	Target wire.Target

	// AllowOthers permits a listener that other machines can reach. A port
	// forward asks for no credentials: whoever reaches it reaches the target.
	AllowOthers bool
}

// maxForwardEarly is how much of what a client has sent by the time it is accepted
// goes along with the request for its stream.
const maxForwardEarly = 1 << 10

// NewPortForward returns a front end on ln. It refuses a listener that others
// can reach unless to allows that.
func NewPortForward(ln net.Listener, to ForwardTarget, cfg FrontConfig) (*PortForward, error) {
	if to.Agent.Organization == "" {
		to.Agent.Organization = cfg.Router.Organization
	}
	if to.Agent.Agent == "" {
		to.Agent.Agent = cfg.Router.Agent
	}
	switch {
	case to.Agent.Agent == "":
		return nil, fmt.Errorf("forward %s to %s: no agent is named", ln.Addr(), to.Target)
	case !to.AllowOthers && !isLoopback(ln.Addr()):
		return nil, fmt.Errorf("forward %s to %s: other machines can reach this address, and a port forward asks for no credentials; "+
			"listen on 127.0.0.1 or [::1]", ln.Addr(), to.Target)
	}
	// Access is decided: an address that anybody may reach needs no login here.
	s := makeServer(FrontForward, ln, nil, cfg)
	p := &PortForward{Server: s, to: route{
		id: Identity{Organization: to.Agent.Organization}, agent: to.Agent, target: to.Target,
	}}
	s.serve, s.refuse = p.serveClient, refuseForward
	return p, nil
}

func refuseForward(conn net.Conn, _ *wire.Failure) {
	reset(conn)
	_ = conn.Close()
}

func (p *PortForward) serveClient(c *client) {
	defer c.Close()
	if !c.said() {
		c.abort()
		return
	}
	stream, f := p.openWith(c)
	if f != nil {
		if f.Hint != "" {
			p.log.Info("what to do", slog.String("hint", f.Hint))
		}
		c.abort()
		return
	}
	p.carry(c, p.to, stream, nil)
}

// openWith opens the stream of a client, with what it has sent already: most clients
// speak first, and at once.
func (p *PortForward) openWith(c *client) (Stream, *wire.Failure) {
	early, ok := p.early.Get().(*[maxForwardEarly]byte)
	if !ok {
		early = new([maxForwardEarly]byte)
	}
	defer p.early.Put(early) // the stream has sent it, or there is none
	return p.open(p.ctx, c, p.to, early[:pipe.ReadNow(c.Conn, early[:])])
}

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Times of orders.
const (
	ordersPatience = 2 * time.Second // for an answer to "tell me my orders", before it is asked again
	maxOrders      = 1 << 20         // bytes of a message
)

// FollowOrders has receive called with every message that the hub sends to a replica
// as its orders, until ctx ends. It asks for them at the start and whenever the bus
// comes back, and again until known says that there are some. receive and known are
// called from one goroutine each. What comes is not to be believed before its
// signature was checked.
func (c *Conn) FollowOrders(ctx context.Context, agent, replica string, receive func([]byte), known func() bool) error {
	if err := errors.Join(identity.ValidateName("agent ID", agent), identity.ValidateName("replica", replica)); err != nil {
		return err
	}
	var one sync.Mutex // two links may deliver at once
	handle := func(_ *link, m *nats.Msg) {
		if len(m.Data) <= maxOrders {
			one.Lock()
			defer one.Unlock()
			receive(m.Data)
		}
	}
	for _, subject := range []string{subjectOrders + agent, subjectOrders + agent + "." + replica} {
		stop, err := c.subscribe(subject, "", handle)
		if err != nil {
			return err
		}
		defer stop()
	}
	ask := func() {
		if err := c.publish(ctx, subjectOrderAsk+agent+"."+replica, nil); err != nil && ctx.Err() == nil {
			c.log.Debug("orders not asked for", "error", err)
		}
	}
	for {
		up := c.linkUp()
		ask()
		again := time.NewTicker(ordersPatience)
		for linked := true; linked; {
			select {
			case <-ctx.Done():
				again.Stop()
				return nil
			case <-up:
				linked = false
			case <-again.C:
				if !known() {
					ask()
				}
			}
		}
		again.Stop()
	}
}

// ServeOrders has asked called, from one goroutine, when a replica asks for its
// orders; it should not take long. stop ends that and waits.
func (c *Conn) ServeOrders(asked func(agent, replica string)) (stop func(), err error) {
	return c.subscribe(subjectOrderAsk+"*.*", "orders", func(_ *link, m *nats.Msg) {
		if agent, replica, ok := parseReplica(m.Subject, subjectOrderAsk); ok {
			asked(agent, replica)
		}
	})
}

// SendOrders sends orders to all replicas of an agent, or to one of them if replica
// is not empty.
func (c *Conn) SendOrders(ctx context.Context, agent, replica string, message []byte) error {
	subject := subjectOrders + agent
	if replica != "" {
		subject += "." + replica
	}
	return c.publish(ctx, subject, message)
}

// ExplainRequest asks a replica what it would say to a stream. Nothing is resolved
// or dialled.
type ExplainRequest struct {
	From    []string `json:"from"`              // the asker: see policy.ParseAsker
	Target  string   `json:"target"`            // see wire.ParseTarget
	Address string   `json:"address,omitempty"` // one that the target leads to, if it is known
}

// Explanation is a replica's answer to an ExplainRequest, for each of the two sides
// that decide at it.
type Explanation struct {
	Owner   Verdict `json:"owner"`            // the agent's own rules
	Access  Verdict `json:"access"`           // the hub's access grants, as the replica knows them
	Policy  string  `json:"policy"`           // version of the agent's own rules
	Orders  uint64  `json:"orders,omitempty"` // version of the hub's orders at the replica; 0: none
	Failure string  `json:"failure,omitempty"`
}

// Verdict is what one side says.
type Verdict struct {
	Allowed   bool   `json:"allowed"`
	ByAddress bool   `json:"by_address,omitempty"` // it depends on the address that the target leads to
	Rule      string `json:"rule,omitempty"`       // the one that decides
	Origin    string `json:"origin,omitempty"`     // where it stands, or the ID of the access grant
	Reason    string `json:"reason,omitempty"`     // why it is refused
	Missing   string `json:"missing,omitempty"`    // the rule that would help
}

func (v Verdict) clip() Verdict {
	v.Rule, v.Origin, v.Reason, v.Missing = clip(v.Rule, maxRule), clip(v.Origin, maxRule), clip(v.Reason, maxText), clip(v.Missing, maxRule)
	return v
}

// Explain asks a replica. Errors are *wire.Failure.
func (c *Conn) Explain(ctx context.Context, agent, replica string, r ExplainRequest) (Explanation, error) {
	who := "replica " + replica + " of agent " + agent
	data, err := json.Marshal(r)
	if err != nil || len(data) > maxMessage {
		return Explanation{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "the question to %s is too long", who).WithCause(err)
	}
	answer, err := c.ask(ctx, subjectExplain+agent+"."+replica, who, data)
	if err != nil {
		return Explanation{}, err
	}
	var e Explanation
	if err := decode(answer, &e); err != nil {
		return Explanation{}, wire.Fail(wire.LegAgent, wire.CodeProtocol, "the answer of %s cannot be read", who).WithCause(err)
	}
	e.Owner, e.Access, e.Policy, e.Failure = e.Owner.clip(), e.Access.clip(), clip(e.Policy, maxWord), clip(e.Failure, maxText)
	if e.Failure != "" {
		return e, wire.Fail(wire.LegAgent, wire.CodeBadRequest, "%s cannot say: %s", who, e.Failure)
	}
	return e, nil
}

// ServeExplain lets h answer the requests to one replica. It is called from one
// goroutine. stop ends that and waits.
func (c *Conn) ServeExplain(agent, replica string, h func(ExplainRequest) Explanation) (stop func(), err error) {
	return c.subscribe(subjectExplain+agent+"."+replica, "explain", func(_ *link, m *nats.Msg) {
		var r ExplainRequest
		var e Explanation
		if err := decode(m.Data, &r); err != nil {
			e.Failure = "the request cannot be read"
		} else {
			e = h(r)
		}
		answer, err := json.Marshal(e)
		if err == nil {
			err = m.Respond(answer)
		}
		if err != nil {
			c.log.Debug("bus reply not sent", "subject", m.Subject, "error", err)
		}
	})
}

package bus

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

const (
	maxAudits  = 64 // handlers at once, per ServeAudit
	auditQueue = "audit"
)

// SendAudit brings a batch of a replica's audit records to the hub, at most
// MaxPayload bytes. nil means that the hub keeps them. Errors are *wire.Failure:
// the hub's own; LegBus otherwise.
func (c *Conn) SendAudit(ctx context.Context, agent, replica string, batch []byte) error {
	if err := errors.Join(identity.ValidateName("agent ID", agent), identity.ValidateName("replica", replica)); err != nil {
		return wire.Fail(wire.LegAgent, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	l, release, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	msg, err := l.nc.RequestWithContext(ctx, auditSubject(agent, replica), batch)
	if errors.Is(err, nats.ErrNoResponders) {
		return wire.Fail(wire.LegHub, wire.CodeLost, "the hub takes no audit records now").WithCause(err)
	}
	if err != nil {
		return requestFailure(err, "the hub")
	}
	return decodeReply(msg.Data)
}

// ServeAudit lets h keep the audit records of the organization's replicas; the
// server vouches for whose they are. h's error goes back to the sender, who sends
// them again unless it has wire.CodeBadRequest. It is called concurrently, up to
// 64 times at once. stop ends the service and waits for the handlers.
func (c *Conn) ServeAudit(h func(agent, replica string, batch []byte) error) (stop func(), err error) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxAudits)
	unsubscribe, err := c.subscribe(subjectAudit+"*.*", auditQueue, func(l *link, m *nats.Msg) {
		respond := func(err error) {
			if err := m.Respond(encodeReply(err)); err != nil {
				c.log.Debug("bus reply not sent", "subject", m.Subject, "error", err)
			}
		}
		agent, replica, ok := parseReplica(m.Subject, subjectAudit)
		if !ok {
			respond(wire.Fail(wire.LegHub, wire.CodeBadRequest, "the subject names no replica"))
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			respond(wire.Fail(wire.LegHub, wire.CodeOverloaded, "the hub takes the audit records of others first"))
			return
		}
		l.hold()
		wg.Go(func() {
			defer func() { <-slots; l.release() }()
			respond(h(agent, replica, m.Data))
		})
	})
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { unsubscribe(); wg.Wait() }), nil
}

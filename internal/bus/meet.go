package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Limits of what travels over the bus. The server lets a party send messages
// of at most MaxPayload bytes; ours are shorter.
const (
	MaxPayload = 64 << 10
	MaxTickets = 64 // in one MeetRequest

	maxMessage   = 32 << 10
	maxMeetings  = 256 // handlers at once, per ServeMeet
	maxText      = 1 << 10
	maxRelayURL  = 2048
	maxProxyID   = 512
	maxExpires   = 10 * time.Minute
	meetingQueue = "meet"

	// secondLook is how long a request that found nobody waits until it looks again.
	secondLook = 20 * time.Millisecond
)

// MeetRequest asks an agent's replica to come to a relay and join the pipes
// that the tickets stand for.
type MeetRequest struct {
	Epoch   string        // which life of the replica is asked, of its Presence; empty: any
	Relay   string        // connect URL; empty: the agent's own
	Tickets []wire.Ticket // one per pipe, 1 to MaxTickets
	Proxy   string        // the SPIFFE ID of who asks, for the agent's log; the inner TLS proves it
	Expires time.Duration // how long the tickets are good for; up to 10 minutes, in whole milliseconds
}

// meetMessage is a MeetRequest as JSON on subject meet.AGENT.REPLICA. Unknown
// members are ignored: the other side may be newer.
type meetMessage struct {
	Epoch     string        `json:"epoch,omitempty"`
	Relay     string        `json:"relay,omitempty"`
	Tickets   []wire.Ticket `json:"tickets"`
	Proxy     string        `json:"proxy,omitempty"`
	ExpiresMS int64         `json:"expires_ms"`
}

// meetReply is the answer to a meetMessage: OK, or why not.
type meetReply struct {
	OK      bool         `json:"ok,omitempty"`
	Failure *failureJSON `json:"failure,omitempty"`
}

type failureJSON struct {
	Leg  wire.Leg  `json:"leg"`
	Code wire.Code `json:"code"`
	Text string    `json:"text,omitempty"`
	Hint string    `json:"hint,omitempty"`
}

func encodeMeet(r MeetRequest) ([]byte, error) {
	m := meetMessage{Epoch: r.Epoch, Relay: r.Relay, Tickets: r.Tickets, Proxy: r.Proxy, ExpiresMS: r.Expires.Milliseconds()}
	if err := m.check(); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func decodeMeet(data []byte) (MeetRequest, error) {
	var m meetMessage
	if err := decode(data, &m); err != nil {
		return MeetRequest{}, err
	}
	if err := m.check(); err != nil {
		return MeetRequest{}, err
	}
	return MeetRequest{Epoch: m.Epoch, Relay: m.Relay, Tickets: m.Tickets, Proxy: m.Proxy, Expires: time.Duration(m.ExpiresMS) * time.Millisecond}, nil
}

func (m *meetMessage) check() error {
	switch {
	case len(m.Tickets) == 0 || len(m.Tickets) > MaxTickets:
		return fmt.Errorf("meet request has %d tickets; want 1 to %d", len(m.Tickets), MaxTickets)
	case len(m.Epoch) > maxWord:
		return errors.New("meet request has too long an epoch")
	case len(m.Relay) > maxRelayURL:
		return errors.New("meet request has too long a relay URL")
	case len(m.Proxy) > maxProxyID:
		return errors.New("meet request has too long a proxy ID")
	case m.ExpiresMS <= 0 || m.ExpiresMS > maxExpires.Milliseconds():
		return fmt.Errorf("meet request expires in %d ms; want 1 ms to %s", m.ExpiresMS, maxExpires)
	}
	return nil
}

// decode reads one JSON value of bounded length.
func decode(data []byte, v any) error {
	if len(data) > maxMessage {
		return fmt.Errorf("bus message is %d bytes long; at most %d are allowed", len(data), maxMessage)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode bus message: %w", err)
	}
	return nil
}

func encodeReply(err error) []byte {
	r := meetReply{OK: err == nil}
	if f := wire.AsFailure(err, wire.LegAgent); f != nil {
		r.Failure = &failureJSON{Leg: f.Leg, Code: f.Code, Text: clip(f.Text, maxText), Hint: clip(f.Hint, maxText)}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return []byte(`{}`) // cannot be: see the fields; the asker takes it for a broken protocol
	}
	return b
}

func decodeReply(data []byte) error {
	var r meetReply
	if err := decode(data, &r); err != nil {
		return wire.Fail(wire.LegAgent, wire.CodeProtocol, "the agent's answer cannot be read").WithCause(err)
	}
	switch {
	case r.Failure != nil:
		f := wire.Fail(r.Failure.Leg, r.Failure.Code, "%s", clip(r.Failure.Text, maxText))
		if f.Code == wire.CodeNone {
			f.Code = wire.CodeInternal
		}
		f.Hint = clip(r.Failure.Hint, maxText)
		return f
	case r.OK:
		return nil
	default:
		return wire.Fail(wire.LegAgent, wire.CodeProtocol, "the agent's answer says neither yes nor no")
	}
}

// Meet asks a replica to meet, and returns when it has answered. ctx and the
// request's life bound the wait. Errors are *wire.Failure: the agent's own; that
// of LegAgent with CodeNoAgent when nobody listens there; LegBus otherwise.
func (c *Conn) Meet(ctx context.Context, agent, replica string, r MeetRequest) error {
	if err := errors.Join(identity.ValidateName("agent ID", agent), identity.ValidateName("replica", replica)); err != nil {
		return wire.Fail(wire.LegProxy, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	data, err := encodeMeet(r)
	if err != nil {
		return wire.Fail(wire.LegProxy, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Expires)
	defer cancel()
	answer, err := c.ask(ctx, meetSubject(agent, replica), fmt.Sprintf("replica %s of agent %s", replica, agent), data)
	if err != nil {
		return err
	}
	return decodeReply(answer)
}

// ask sends a request to who listens on a subject and returns the answer.
func (c *Conn) ask(ctx context.Context, subject, who string, data []byte) ([]byte, error) {
	l, release, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	msg, err := l.nc.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		// A listener that renews its credentials moves to a new connection, and a busy
		// server may have looked it up before and found it gone after.
		select {
		case <-time.After(secondLook):
			msg, err = l.nc.RequestWithContext(ctx, subject, data)
		case <-ctx.Done():
		}
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, wire.Fail(wire.LegAgent, wire.CodeNoAgent, "%s is not connected", who).WithCause(err)
	}
	if err != nil {
		return nil, requestFailure(err, who)
	}
	return msg.Data, nil
}

// ServeMeet lets h answer the requests to one replica: h's error goes back to
// the asker, best as a *wire.Failure. Each life of a replica, which its epoch names, hears
// all requests and answers its own: were they spread, some would go to the ghost of a
// process that is frozen or gone and whose connection has not ended. h is called concurrently, up to 256 times
// at once, and should return as soon as it knows whether it will come to the
// relay. stop ends the service and waits for the handlers.
func (c *Conn) ServeMeet(agent, replica, epoch string, h func(MeetRequest) error) (stop func(), err error) {
	if err := errors.Join(identity.ValidateName("agent ID", agent), identity.ValidateName("replica", replica)); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxMeetings)
	// The queue is for the two connections of one life while it renews its credentials.
	unsubscribe, err := c.subscribe(meetSubject(agent, replica), meetingQueue+epoch, func(l *link, m *nats.Msg) {
		respond := func(err error) {
			if err := m.Respond(encodeReply(err)); err != nil {
				c.log.Debug("bus reply not sent", "subject", m.Subject, "error", err)
			}
		}
		r, err := decodeMeet(m.Data)
		if err != nil {
			respond(wire.Fail(wire.LegAgent, wire.CodeBadRequest, "%s", err))
			return
		}
		if r.Epoch != "" && r.Epoch != epoch {
			return // whoever asks hears from us soon, if the other one is gone
		}
		select {
		case slots <- struct{}{}:
		default:
			respond(wire.Fail(wire.LegAgent, wire.CodeOverloaded, "the agent has too many meetings at once"))
			return
		}
		l.hold()
		wg.Go(func() {
			defer func() { <-slots; l.release() }()
			respond(h(r))
		})
	})
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { unsubscribe(); wg.Wait() }), nil
}

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Limits of a question for what was revoked.
const (
	MaxCredentials = 64 // in one question

	maxCredentialText = 320 // bytes of each field: the longest name is a user's
	revokedQueue      = "revoked"
)

// Credential is what a client of a proxy showed as its password, without the secret.
type Credential struct {
	Kind string `json:"kind"` // of whom it belongs to: "robot", "user", "workload"
	Name string `json:"name"`
	Item string `json:"item"` // ID of the token or session
}

// revokedQuestion and revokedAnswer are JSON on subject revoked.ask.PROXY. Unknown
// members are ignored: the other side may be newer.
type revokedQuestion struct {
	Credentials []Credential `json:"credentials"`
}

type revokedAnswer struct {
	Revoked []int        `json:"revoked"` // which of the credentials, counted from 0
	Failure *failureJSON `json:"failure,omitempty"`
}

func (q *revokedQuestion) check() error {
	if n := len(q.Credentials); n == 0 || n > MaxCredentials {
		return fmt.Errorf("question has %d credentials; want 1 to %d", n, MaxCredentials)
	}
	for _, c := range q.Credentials {
		if c.Kind == "" || c.Name == "" || c.Item == "" || max(len(c.Kind), len(c.Name), len(c.Item)) > maxCredentialText {
			return errors.New("question has a credential whose kind, name or item is missing or too long")
		}
	}
	return nil
}

func decodeRevokedQuestion(data []byte) ([]Credential, error) {
	var q revokedQuestion
	if len(data) > MaxPayload {
		return nil, fmt.Errorf("bus message is %d bytes long; at most %d are allowed", len(data), MaxPayload)
	}
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, fmt.Errorf("decode bus message: %w", err)
	}
	return q.Credentials, q.check()
}

// decodeRevokedAnswer returns those of the credentials that were revoked.
func decodeRevokedAnswer(data []byte, asked []Credential) ([]Credential, error) {
	var a revokedAnswer
	if err := decode(data, &a); err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub's answer cannot be read").WithCause(err)
	}
	if f := a.Failure; f != nil {
		return nil, wire.Fail(f.Leg, f.Code, "%s", clip(f.Text, maxText))
	}
	if len(a.Revoked) > len(asked) {
		return nil, wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub's answer names more than it was asked for")
	}
	gone := make([]Credential, 0, len(a.Revoked))
	for _, i := range a.Revoked {
		if i < 0 || i >= len(asked) {
			return nil, wire.Fail(wire.LegHub, wire.CodeProtocol, "the hub's answer names what it was not asked for")
		}
		gone = append(gone, asked[i])
	}
	return gone, nil
}

// AskRevoked asks the hub which of some credentials, MaxCredentials at most, were
// revoked, in the name of a proxy. Errors are *wire.Failure; a hub of a version before
// this question does not answer.
func (c *Conn) AskRevoked(ctx context.Context, proxy string, credentials []Credential) ([]Credential, error) {
	q := revokedQuestion{credentials}
	if err := errors.Join(identity.ValidateName("proxy name", proxy), q.check()); err != nil {
		return nil, wire.Fail(wire.LegProxy, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	data, err := json.Marshal(q)
	if err != nil {
		return nil, wire.Fail(wire.LegProxy, wire.CodeInternal, "the question cannot be written").WithCause(err)
	}
	l, release, err := c.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	msg, err := l.nc.RequestWithContext(ctx, subjectRevoked+proxy, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, wire.Fail(wire.LegHub, wire.CodeLost, "the hub does not tell now what was revoked").WithCause(err)
	}
	if err != nil {
		return nil, requestFailure(err, "the hub")
	}
	return decodeRevokedAnswer(msg.Data, credentials)
}

// ServeRevoked lets h answer the questions of the organization's proxies: it returns
// which of the credentials were revoked, counted from 0. It is called from one
// goroutine, so one organization's questions wait for each other and for no others'.
// stop ends that and waits.
func (c *Conn) ServeRevoked(h func([]Credential) []int) (stop func(), err error) {
	return c.subscribe(subjectRevoked+"*", revokedQueue, func(_ *link, m *nats.Msg) {
		var a revokedAnswer
		credentials, err := decodeRevokedQuestion(m.Data)
		if err != nil {
			a.Failure = &failureJSON{Leg: wire.LegHub, Code: wire.CodeBadRequest, Text: clip(err.Error(), maxText)}
		} else {
			a.Revoked = h(credentials)
		}
		answer, err := json.Marshal(a)
		if err == nil {
			err = m.Respond(answer)
		}
		if err != nil {
			c.log.Debug("bus reply not sent", "subject", m.Subject, "error", err)
		}
	})
}

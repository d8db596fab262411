// Package presence asks hubs which agents are connected, and a hub's own proxy whether it takes a
// password. The controller of Proxies does, for each of them every few seconds, so that a hub that does
// not answer is asked less and less.
package presence

import (
	"context"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

const (
	askTimeout   = 5 * time.Second  // of one question
	firstPause   = 2 * time.Second  // after a hub has not answered
	longestPause = 20 * time.Second // as it goes on not to answer
	maxHubs      = 256              // that are remembered
)

// Hub is where a hub is, and how it is trusted. It is comparable.
type Hub struct {
	ConnectURL string // tls://HOST[:4222], https://HOST or wss://HOST
	CA         string // PEM; empty for the system's CAs, unless CAPin is set
	CAPin      string // "sha256:HEX"; may be empty
}

// Agent is an agent as a hub sees it.
type Agent struct {
	Connected bool // a replica takes streams
	Revoked   bool // it is kept out by its name
	Replicas  []api.Replica
}

// Hubs asks hubs. It is safe for concurrent use.
type Hubs struct {
	getenv func(string) string

	mu   sync.Mutex
	hubs map[Hub]*hub
}

// hub is what is remembered of one hub.
type hub struct {
	dialer   *uplink.Dialer
	used     time.Time
	failures int // in a row
	until    time.Time
	err      error // of the last failure
}

// New returns a Hubs. getenv, which may be nil, tells of HTTPS_PROXY and NO_PROXY.
func New(getenv func(string) string) *Hubs {
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	return &Hubs{getenv: getenv, hubs: make(map[Hub]*hub)}
}

// Close closes the connections that are idle.
func (h *Hubs) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for where, one := range h.hubs {
		one.dialer.CloseIdle()
		delete(h.hubs, where)
	}
}

// Agent asks a hub about an agent of an organization, with a robot's token as it stands in a token
// file. It takes five seconds at most. Errors are *wire.Failure: CodeUnauthenticated and CodeDenied
// when the token is refused, CodeBadRequest when it is none or the hub's address cannot be used.
func (h *Hubs) Agent(ctx context.Context, where Hub, organization, agent string, token []byte) (Agent, error) {
	parsed, err := enroll.ParseToken(token)
	if err != nil {
		return Agent{}, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s", err).WithCause(err).
			WithHint("make a new one with: postern robot token create ROBOT NAME -f FILE")
	}
	one, err := h.hub(where)
	if err != nil {
		return Agent{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := &api.Client{BaseURL: one.dialer.BaseURL(), HTTP: one.dialer.HTTPClient(), Token: parsed.Token}
	a, err := client.Agent(ctx, organization, agent)
	if api.IsNotFound(err) {
		h.answered(one, nil)
		return Agent{}, nil
	}
	h.answered(one, err)
	if err != nil {
		return Agent{}, wire.AsFailure(err, wire.LegHub)
	}
	return Agent{
		Connected: a.Revoked == nil && slices.ContainsFunc(a.Replicas, func(r api.Replica) bool { return r.State == api.StateReady }),
		Revoked:   a.Revoked != nil,
		Replicas:  a.Replicas,
	}, nil
}

// hub returns what is remembered of a hub, or its last failure, as long as it is not asked again.
func (h *Hubs) hub(where Hub) (*hub, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if one, known := h.hubs[where]; known {
		one.used = now
		if now.Before(one.until) {
			return nil, one.err
		}
		return one, nil
	}
	c := uplink.Config{ConnectURL: where.ConnectURL, CAPin: where.CAPin, Getenv: h.getenv}
	if where.CA != "" {
		c.Roots = x509.NewCertPool()
		if !c.Roots.AppendCertsFromPEM([]byte(where.CA)) {
			return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "the hub's CA holds no certificate in PEM").WithHint("take ca.crt from the hub's data folder")
		}
	}
	d, err := uplink.New(c)
	if err != nil {
		return nil, wire.AsFailure(err, wire.LegClient)
	}
	if len(h.hubs) >= maxHubs {
		h.forget()
	}
	one := &hub{dialer: d, used: now}
	h.hubs[where] = one
	return one, nil
}

// forget drops the hub that was not asked for longest; the caller holds mu.
func (h *Hubs) forget() {
	var oldest *Hub
	for where, one := range h.hubs {
		if oldest == nil || one.used.Before(h.hubs[*oldest].used) {
			oldest = &where
		}
	}
	h.hubs[*oldest].dialer.CloseIdle()
	delete(h.hubs, *oldest)
}

// answered notes whether a hub answered: a refusal is an answer.
func (h *Hubs) answered(one *hub, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := wire.AsFailure(err, wire.LegHub); err == nil || f.Code == wire.CodeUnauthenticated || f.Code == wire.CodeDenied || f.Code == wire.CodeCanceled {
		one.failures, one.until, one.err = 0, time.Time{}, nil
		return
	}
	one.failures++
	one.err = wire.AsFailure(err, wire.LegHub)
	one.until = time.Now().Add(min(firstPause<<min(one.failures-1, 10), longestPause))
}

// LastError returns the latest failure that the replicas told of; empty for none.
func (a Agent) LastError() string {
	var last api.Replica
	for _, r := range a.Replicas {
		if r.LastError != "" && !r.LastErrorAt.Before(last.LastErrorAt) {
			last = r
		}
	}
	return last.LastError
}

package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"postern.dev/postern/internal/identity"
)

// State is how a replica of an agent is.
type State string

// The states. A replica says the first three of itself; a Directory says lost.
const (
	StateReady    State = "ready"
	StateDraining State = "draining" // serves what it has, takes nothing new
	StateStopped  State = "stopped"  // ended cleanly
	StateLost     State = "lost"     // silent for longer than lostAfter
)

// Times of presence. Three announcements in a row have to be missed before a
// replica is taken for lost.
const (
	announceEvery = 3 * time.Second
	announceGap   = 200 * time.Millisecond // at least, however often it is asked for
	lostAfter     = 9 * time.Second
)

// Limits of the texts in a Presence, in bytes; longer ones are cut.
const (
	maxWord  = 64
	maxError = 512
	maxRules = 64
	maxRule  = 300
)

// Presence is what a replica of an agent says of itself every three seconds.
type Presence struct {
	Agent       string        `json:"-"` // from the subject, which the server guards
	Replica     string        `json:"-"`
	Epoch       string        `json:"epoch"` // unique per start of the process
	Version     string        `json:"version,omitempty"`
	Zone        string        `json:"zone,omitempty"`
	State       State         `json:"state"`
	Address     string        `json:"address,omitempty"` // where it connects from, as far as it knows
	Started     time.Time     `json:"started"`
	Since       time.Time     `json:"since"` // when the state began
	Streams     int           `json:"streams"`
	Pipes       int           `json:"pipes"`
	BytesIn     uint64        `json:"bytes_in"`
	BytesOut    uint64        `json:"bytes_out"`
	RTT         time.Duration `json:"rtt_ns"` // to the hub
	LastError   string        `json:"last_error,omitempty"`
	LastErrorAt time.Time     `json:"last_error_at,omitzero"`
	Allow       []string      `json:"allow,omitempty"` // the rules of what it may reach
	Policy      *PolicyStatus `json:"policy,omitempty"`
	Gateway     bool          `json:"gateway,omitempty"` // it is a cluster at the hub's gateway
	Orders      uint64        `json:"orders,omitempty"`  // the version of the hub's orders in force; 0: none yet
}

// PolicyStatus is which policy is in force at a replica.
type PolicyStatus struct {
	Rules   int       `json:"rules"`             // that allow or deny
	Version string    `json:"version"`           // the same for the same rules
	Since   time.Time `json:"since"`             // when this version came into force
	Error   string    `json:"error,omitempty"`   // why the newest policy file is not in force
	ErrorAt time.Time `json:"error_at,omitzero"` // when that was found
}

func encodePresence(p Presence) ([]byte, error) {
	p.clip()
	if err := p.check(); err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

func decodePresence(subject string, data []byte) (Presence, error) {
	var p Presence
	if err := decode(data, &p); err != nil {
		return Presence{}, err
	}
	var ok bool
	if p.Agent, p.Replica, ok = parsePresenceSubject(subject); !ok {
		return Presence{}, fmt.Errorf("subject %.200q is not a presence's", subject)
	}
	p.clip()
	return p, p.check()
}

func (p *Presence) clip() {
	p.Epoch, p.Version, p.Zone = clip(p.Epoch, maxWord), clip(p.Version, maxWord), clip(p.Zone, maxWord)
	p.Address, p.LastError = clip(p.Address, maxRule), clip(p.LastError, maxError)
	p.Streams, p.Pipes, p.RTT = max(p.Streams, 0), max(p.Pipes, 0), max(p.RTT, 0)
	if p.Policy != nil {
		s := *p.Policy // the caller keeps his
		s.Rules, s.Version, s.Error = max(s.Rules, 0), clip(s.Version, maxWord), clip(s.Error, maxError)
		p.Policy = &s
	}
	if p.Allow == nil {
		return
	}
	rules := make([]string, 0, min(len(p.Allow), maxRules))
	for _, r := range p.Allow[:cap(rules)] {
		rules = append(rules, clip(r, maxRule))
	}
	p.Allow = rules
}

func (p *Presence) check() error {
	switch {
	case p.State != StateReady && p.State != StateDraining && p.State != StateStopped:
		return fmt.Errorf("presence has the unknown state %.60q", p.State)
	case p.Epoch == "":
		return errors.New("presence has no epoch")
	case p.Started.Year() < 1 || p.Started.Year() > 9999 || p.Since.Year() > 9999 || p.LastErrorAt.Year() > 9999,
		p.Policy != nil && (p.Policy.Since.Year() > 9999 || p.Policy.ErrorAt.Year() > 9999):
		return errors.New("presence has a time out of range")
	}
	return errors.Join(identity.ValidateName("agent ID", p.Agent), identity.ValidateName("replica", p.Replica))
}

// Kick makes Announce announce now, as after a change of state.
func (c *Conn) Kick() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Announce tells the organization how this replica is: every three seconds with
// jitter, when somebody asks, after Kick, and when the bus comes back; at most
// five times a second. When ctx ends it announces StateStopped and returns nil;
// Close the Conn after that. get is called from one goroutine. An error means
// that what get returned at first cannot be announced. One Announce per Conn.
func (c *Conn) Announce(ctx context.Context, get func() Presence) error {
	if _, err := encodePresence(get()); err != nil {
		return fmt.Errorf("announce presence: %w", err)
	}
	stop, err := c.subscribe(subjectAsk, "", func(*link, *nats.Msg) { c.Kick() })
	if err != nil {
		return err
	}
	defer stop()
	for {
		up := c.linkUp()
		c.announce(ctx, get())
		gap := time.After(announceGap)
		next := time.NewTimer(announceEvery - announceEvery/10 + rand.N(announceEvery/10))
		select {
		case <-next.C:
		case <-up:
		case <-c.kick:
		case <-ctx.Done():
			next.Stop()
			c.farewell(ctx, get())
			return nil
		}
		next.Stop()
		select {
		case <-gap:
		case <-ctx.Done():
		}
	}
}

// linkUp returns a channel that is closed when the next link is there.
func (c *Conn) linkUp() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

func (c *Conn) announce(ctx context.Context, p Presence) {
	if !c.Connected() {
		return // the next link makes it up
	}
	data, err := encodePresence(p)
	if err == nil {
		err = c.publish(ctx, presenceSubject(p.Agent, p.Replica), data)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Debug("presence not announced", "error", err)
	}
}

// farewell announces the end, and waits a moment for it to be out.
func (c *Conn) farewell(ctx context.Context, p Presence) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	p.State, p.Since = StateStopped, time.Now()
	c.announce(ctx, p)
	if c.Connected() {
		_, _ = c.RTT(ctx)
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"postern.dev/postern/internal/config"
)

// Pauses before an organization that cannot be served is tried again.
const (
	firstRetry = 5 * time.Second
	retryGrows = 12 // so many times as long, at most
)

// Files of a process: what is kept for all else than pipes and their targets, in all
// and for each organization.
const (
	spareFiles    = 64
	filesPerParty = 32
)

// pipesFor returns how many pipes each of n organizations may have, so that all of
// them together do not use up the files that the process may open.
func (o Options) pipesFor(n int) int {
	if o.MaxPipes > 0 {
		return o.MaxPipes
	}
	return share(openFiles(), n)
}

func share(files uint64, n int) int {
	if files == 0 || files > 1<<32 {
		return maxPipes
	}
	left := int(files) - spareFiles - n*filesPerParty
	return min(max(left/(2*n), 1), maxPipes) // a pipe, and its target
}

// Members serves the organizations of an agent's settings, each by an Agent of its
// own: what happens to one does not touch another. One that cannot be served until a
// person mends something, say one whose token was revoked, is told in the log, the
// metrics and the health, and tried again from time to time. Make it with NewMembers and
// run it once.
type Members struct {
	log     *slog.Logger
	members []*member
}

// member is one organization.
type member struct {
	cfg    config.Agent
	opt    Options
	meters *meters
	limit  int

	mu      sync.Mutex
	failure error // why the organization cannot be served; nil until that is known
	served  bool  // by the present Agent
}

// NewMembers prepares the agents of all organizations of the settings. What is wrong
// with one, its policy file for instance, shows when it runs.
func NewMembers(cfg config.Agent, opt Options) *Members {
	each := cfg.Each()
	m := &Members{log: opt.Log}
	limit := opt.pipesFor(len(each))
	for _, one := range each {
		own := opt
		if opt.Health != nil && len(each) > 1 {
			own.Health = opt.Health.Organization(one.Label())
		}
		m.members = append(m.members, &member{cfg: one, opt: own, limit: limit, meters: newMeters(opt.Registry, one.Label())})
	}
	return m
}

// Run serves until ctx ends, and then lets the streams of all organizations finish for
// the drain time of the settings. It returns nil after a stop that was asked for. When
// none of the organizations can be served until a person mends something, it returns
// why, for each of them.
func (m *Members) Run(ctx context.Context) error {
	serving, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var wg sync.WaitGroup
	for _, one := range m.members {
		wg.Go(func() { m.serve(serving, one, giveUp) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return m.failure()
}

// serve runs the agents of one organization, one after the other, until ctx ends. When
// this is the last organization to fail, it gives up.
func (m *Members) serve(ctx context.Context, one *member, giveUp func()) {
	first := one.opt.Retry
	if first == 0 {
		first = firstRetry
	}
	for pause := first; ; pause = min(2*pause, retryGrows*first) {
		served, err := one.run(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if m.failure() != nil {
			giveUp()
			return
		}
		if served {
			pause = first
		}
		wait := pause/2 + rand.N(pause/2+1)
		m.log.Error("the organization cannot be served until somebody mends this; the others go on", "organization", one.cfg.Label(),
			"error", err, "retry_in", wait.Round(time.Millisecond))
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// failure returns why no organization can be served, or nil if some can.
func (m *Members) failure() error {
	var all []error
	for _, one := range m.members {
		err := one.failed()
		if err == nil {
			return nil
		}
		if len(m.members) == 1 {
			return err
		}
		all = append(all, fmt.Errorf("organization %s: %w", one.cfg.Label(), err))
	}
	return errors.Join(all...)
}

// run runs one Agent, and tells whether it served.
func (o *member) run(ctx context.Context) (served bool, err error) {
	o.mu.Lock()
	o.served = false
	o.mu.Unlock()
	a, err := newAgent(o.cfg, o.opt, o.meters, o.limit, o.ready)
	if err == nil {
		err = a.Run(ctx)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		return o.served, nil
	}
	o.failure = err
	o.meters.member.Failed()
	if h := o.opt.Health; h != nil {
		h.Unregister("bus", "relay")
		h.Register("membership", func(context.Context) error { return o.failed() })
	}
	return o.served, err
}

// ready notes that the organization is served.
func (o *member) ready() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.served, o.failure = true, nil
	o.meters.member.Served()
	if o.opt.Health != nil {
		o.opt.Health.Unregister("membership")
	}
}

func (o *member) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failure
}

package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/wire"
)

const (
	// settleTime is how long a phase lasts at least: longer than a token exchange
	// that began before it.
	settleTime = 30 * time.Second

	// rotationLook is how often it is looked whether the next phase is due.
	rotationLook = 5 * time.Second
)

// RotationConfig says what a Rotation works on.
type RotationConfig struct {
	State         *State
	Issued        *Issued
	CredentialTTL time.Duration // of parties' certificates
	Changed       func()        // called when the authorities have changed; nil: nobody
	Log           *slog.Logger
	Now           func() time.Time // nil: time.Now
}

// Rotation changes a hub from one certificate authority to the next, without an
// outage: the next one is announced, signs when everybody trusts it, and the one
// before retires when nothing that it signed is valid any more. Each phase is on
// disk before it takes effect, so that a restart goes on with it. Safe for
// concurrent use.
type Rotation struct {
	c  RotationConfig
	mu sync.Mutex // one change at a time
}

// NewRotation returns the Rotation of a hub. Run it, or nothing moves on by itself.
func NewRotation(c RotationConfig) *Rotation {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	return &Rotation{c: c}
}

// Run moves on to the next phase when it is due, until ctx ends.
func (r *Rotation) Run(ctx context.Context) {
	tick := time.NewTicker(min(rotationLook, max(r.settle()/4, time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := r.step(); err != nil {
			r.c.Log.Error("the rotation of the certificate authority does not go on; will try again", "error", err)
		}
	}
}

// settle returns how long a phase lasts at least. Credentials that live for less
// are replaced by then anyway.
func (r *Rotation) settle() time.Duration { return min(settleTime, r.c.CredentialTTL) }

// step moves on by one phase if that is due.
func (r *Rotation) step() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.c.Now()
	for _, one := range r.c.State.Trust().Records() {
		due, _ := r.due(one, now)
		if due.IsZero() || now.Before(due) {
			continue
		}
		if one.Phase == PhaseAnnounced {
			return r.change("the announced one signs from now on", one.Pin, func() error { return r.c.State.Switch(now) })
		}
		return r.change("one has retired", one.Pin, func() error {
			return r.c.State.Withdraw(one.Pin, PhaseRetired, now)
		})
	}
	return nil
}

// change does what changes the authorities, and tells.
func (r *Rotation) change(what, pin string, do func() error) error {
	if err := do(); err != nil {
		return err
	}
	r.c.Changed()
	r.c.Log.Info("the certificate authorities changed", "what", what, "ca_pin", pin, "generation", r.c.State.Trust().Generation)
	return nil
}

// due returns when an authority's next phase is to come, as far as it can be told
// now, and how many credentials it still waits for; a zero time means never.
func (r *Rotation) due(one AuthorityRecord, now time.Time) (time.Time, int) {
	switch one.Phase {
	case PhaseAnnounced:
		n, until := r.c.Issued.Uninformed(one.Generation, now)
		return later(one.Since.Add(r.settle()), until), n
	case PhaseRetiring:
		n, until := r.c.Issued.By(one.Pin, now)
		return later(one.Since.Add(r.settle()), until), n
	default:
		return time.Time{}, 0
	}
}

// Rotate announces a new authority. With at once, it signs without waiting until
// the parties trust it: those that know the old one only fail with those that have
// a certificate of the new one, until they renew.
func (r *Rotation) Rotate(atOnce bool) ([]api.Authority, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.c.Now()
	announced := slices.ContainsFunc(r.c.State.Trust().Records(), func(one AuthorityRecord) bool { return one.Phase == PhaseAnnounced })
	if !announced || !atOnce {
		if err := r.c.State.Announce(now); err != nil {
			return nil, phaseFailure(err)
		}
		r.c.Changed()
		r.c.Log.Info("a new certificate authority is announced", "ca_pin", r.c.State.Trust().Pin(), "signs_by", now.Add(r.c.CredentialTTL))
	}
	if atOnce {
		if err := r.switchNow(now); err != nil {
			return nil, err
		}
	}
	return r.list(now), nil
}

func (r *Rotation) switchNow(now time.Time) error {
	pin := r.c.State.Trust().Pin()
	return phaseFailure(r.change("the new one signs at once", pin, func() error { return r.c.State.Switch(now) }))
}

// Retire withdraws an authority. One that is announced is given up. One that
// retires, and one that signs, are withdrawn before their time with force only:
// what they issued is refused and cut at once. The place of one that signs is
// taken by the announced or a new one.
func (r *Rotation) Retire(ctx context.Context, pin string, force bool) ([]api.Authority, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.c.Now()
	one, err := r.find(pin)
	if err != nil {
		return nil, err
	}
	switch {
	case one.Phase == PhaseAnnounced:
		err := r.change("the announced one is given up", one.Pin, func() error {
			return r.c.State.Withdraw(one.Pin, PhaseRetired, now)
		})
		return r.list(now), phaseFailure(err)
	case !one.trusted():
		return nil, conflict("the certificate authority is "+string(one.Phase)+" already", "")
	case !force && one.Phase == PhaseSigning:
		return nil, conflict("this certificate authority signs", "replace it with: postern ca rotate")
	case !force:
		due, n := r.due(one, now)
		return nil, conflict(fmt.Sprintf("%d certificates of it are still valid, and it retires by itself, by %s", n, due.UTC().Format(time.RFC3339)),
			"if its key may be known to somebody, cut them off with --force")
	}
	if one.Phase == PhaseSigning {
		if r.c.State.Trust().Pin() == one.Pin {
			if err := r.c.State.Announce(now); err != nil {
				return nil, phaseFailure(err)
			}
		}
		if err := r.switchNow(now); err != nil {
			return nil, err
		}
	}
	err = r.change("one is distrusted", one.Pin, func() error {
		return r.c.State.Withdraw(one.Pin, PhaseDistrusted, now)
	})
	if err != nil {
		return nil, phaseFailure(err)
	}
	r.c.Issued.Distrust(context.WithoutCancel(ctx), one.Pin)
	return r.list(now), nil
}

// find returns the authority with a pin, of which the first digits suffice.
func (r *Rotation) find(pin string) (AuthorityRecord, error) {
	const least = 8 // digits
	digits := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(pin), "sha256:"), ":", "")
	var found []AuthorityRecord
	for _, one := range r.c.State.Trust().Records() {
		if strings.HasPrefix(strings.TrimPrefix(one.Pin, "sha256:"), digits) {
			found = append(found, one)
		}
	}
	switch {
	case len(digits) < least:
		return AuthorityRecord{}, wire.Fail(wire.LegHub, wire.CodeBadRequest, "a pin is named by at least its first %d digits", least)
	case len(found) != 1:
		return AuthorityRecord{}, &api.Problem{
			Status: 404, Code: wire.CodeBadRequest.String(), Detail: "no certificate authority of this hub has that pin", Hint: "see: postern ca list",
		}
	}
	return found[0], nil
}

// List returns the authorities, the newest first.
func (r *Rotation) List() []api.Authority {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list(r.c.Now())
}

func (r *Rotation) list(now time.Time) []api.Authority {
	t := r.c.State.Trust()
	all := make([]api.Authority, 0, len(t.records))
	for _, one := range t.records {
		a := api.Authority{Pin: one.Pin, Phase: string(one.Phase), Since: one.Since, NotAfter: one.notAfter()}
		if one.trusted() {
			a.Certificates, _ = r.c.Issued.By(one.Pin, now)
			a.NextPhase, a.WaitsFor = r.due(one, now)
			a.Certificate = one.Certificate
		}
		all = append(all, a)
	}
	return all
}

func phaseFailure(err error) error {
	if errors.Is(err, ErrAuthorityPhase) {
		return conflict(err.Error(), "see: postern ca list")
	}
	return err
}

func conflict(detail, hint string) error {
	return &api.Problem{Status: 409, Code: wire.CodeDenied.String(), Detail: detail, Hint: hint}
}

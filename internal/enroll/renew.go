package enroll

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"postern.dev/postern/internal/api"
)

const (
	// The part of their life after which credentials are renewed is drawn evenly
	// between these, so that parties which started together do not renew
	// together. Their middle is two thirds.
	renewFrom, renewTo = 0.60, 0.73

	// Pauses between attempts grow from a fraction of the credentials' life,
	// within these bounds, and half of each is random.
	minPause, firstPause, maxPause = 50 * time.Millisecond, time.Second, 30 * time.Second

	// clockCheck is how often a sleeper looks at the wall clock: timers stand
	// still while a machine is suspended, certificates do not.
	clockCheck = 30 * time.Second

	// hurryPause is the least time between an attempt to renew and one that
	// Refused or another secret asks for.
	hurryPause = 3 * time.Second

	// changeCheck is how often a sleeper looks for another secret.
	changeCheck = 2 * time.Second
)

// Run keeps the credentials fresh until ctx ends, and then returns nil. Where
// Start gave none, it gets the first ones. When the hub cannot be reached, it
// tries on for ever. When the hub refuses (see Permanent), it tries on until
// the credentials expire, because a file may be replaced, and then returns the
// *wire.Failure; credentials that were refused (see Refused) count as expired. A party
// that is revoked by name, or whose secret is Provided, asks on, every half minute in
// the end. Another secret (see Replaceable) is shown within seconds.
func (s *Session) Run(ctx context.Context) error {
	failures := 0
	renewAt := s.renewalTime()
	var last time.Time // of the attempts
	hurry := s.hurry
	for {
		if sleepUntil(ctx, renewAt, hurry, s.changed()) {
			sleepUntil(ctx, last.Add(hurryPause), nil, nil)
		}
		if ctx.Err() != nil {
			return nil
		}
		last = time.Now()
		err := s.exchange(ctx)
		hurry = s.hurry
		switch {
		case err == nil:
			failures, renewAt = 0, s.renewalTime()
			continue
		case ctx.Err() != nil:
			return nil
		case Permanent(err) && s.expired() && !s.provided():
			return err
		}
		if api.IsPartyRevoked(err) || Permanent(err) && s.expired() {
			hurry = nil // that what it has is refused is known: only time helps, or another secret
		}
		failures++
		pause := s.pause(failures, err)
		s.log.LogAttrs(ctx, slog.LevelWarn, "credentials not renewed; will try again",
			slog.Any("error", err), slog.Duration("pause", pause.Round(time.Millisecond)), slog.Time("expires", s.expires()))
		renewAt = time.Now().Add(pause)
	}
}

// renewalTime returns when to renew the newest grant; it is in the past before
// the first.
func (s *Session) renewalTime() time.Time {
	g := s.grant.Load()
	if g == nil {
		return time.Time{}
	}
	part := renewFrom + (renewTo-renewFrom)*rand.Float64()
	return g.Issued.Add(time.Duration(part * float64(g.Expires.Sub(g.Issued))))
}

// pause returns how long to wait after the given number of failures in a row.
func (s *Session) pause(failures int, err error) time.Duration {
	d := firstPause
	if g := s.grant.Load(); g != nil {
		d = min(d, max(minPause, g.Expires.Sub(g.Issued)/60))
	}
	d = min(d<<min(failures-1, 10), maxPause)
	d = d/2 + rand.N(d/2+1)
	var p *api.Problem
	if errors.As(err, &p) && p.RetryAfter > d {
		// The hub asked for it. Spread what comes after, and mind a silly number.
		d = min(p.RetryAfter, 2*maxPause) + rand.N(time.Second)
	}
	return d
}

func (s *Session) expires() time.Time {
	if g := s.grant.Load(); g != nil {
		return g.Expires
	}
	return time.Time{}
}

// expired reports whether there are no valid credentials.
func (s *Session) expired() bool { return s.refused.Load() || !time.Now().Before(s.expires()) }

// replaceable returns what is shown to the hub if it may become another, or nil.
func (s *Session) replaceable() Replaceable {
	if s.req.Key != nil {
		return s.req.Key
	}
	r, _ := s.req.Secret.(Replaceable)
	return r
}

// changed returns what reports that there is another secret, or nil if there can be
// none.
func (s *Session) changed() func() bool {
	if r := s.replaceable(); r != nil {
		return r.Changed
	}
	return nil
}

// provided reports whether a machine will put another secret there.
func (s *Session) provided() bool {
	r := s.replaceable()
	return r != nil && r.Provided()
}

// sleepUntil waits until t has come by the monotonic clock or by the wall clock, or
// hurry gives something, or changed, unless it is nil, reports true, or ctx ends. It
// reports whether it was hurry or changed.
func sleepUntil(ctx context.Context, t time.Time, hurry <-chan struct{}, changed func() bool) (hurried bool) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	check := clockCheck
	if changed != nil {
		check = changeCheck
	}
	for {
		if changed != nil && changed() {
			return true
		}
		now := time.Now()
		left := min(t.Sub(now), t.Round(0).Sub(now.Round(0)))
		if left <= 0 {
			return false
		}
		timer.Reset(min(left, check))
		select {
		case <-ctx.Done():
			return false
		case <-hurry:
			return true
		case <-timer.C:
		}
	}
}

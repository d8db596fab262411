package enroll

import (
	"errors"
	"fmt"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// maxSkew is how far the hub's clock and ours may differ before it is worth a word.
const maxSkew = time.Minute

// ClockError says that this machine's clock and the hub's differ by more than a
// minute.
type ClockError struct {
	Ahead time.Duration // how far ours is ahead of the hub's; negative: behind
}

// Error says which clock is ahead and by how much.
func (e *ClockError) Error() string {
	if e.Ahead > 0 {
		return fmt.Sprintf("the clock of this machine is %s ahead of the hub's", e.Ahead.Round(time.Second))
	}
	return fmt.Sprintf("the clock of this machine is %s behind the hub's", (-e.Ahead).Round(time.Second))
}

// compareClocks returns a ClockError if the hub's clock, as it stood at some time
// between sent and received, is too far from ours.
func compareClocks(hub, sent, received time.Time) *ClockError {
	if hub.IsZero() {
		return nil
	}
	// Wall clocks only: a monotonic reading would hide that ours was set.
	sent, received = sent.Round(0), received.Round(0)
	ahead := sent.Sub(hub.Add(time.Second / 2)) // the hub tells whole seconds, rounded down
	if ahead < 0 {
		ahead = min(0, received.Sub(hub))
	}
	if ahead > maxSkew || ahead < -maxSkew {
		return &ClockError{Ahead: ahead}
	}
	return nil
}

// checkValidity refuses credentials that are not valid by our clock, which the
// peers' clocks would find too, or ours would find the peers'.
func checkValidity(c *identity.Credentials, clock *ClockError, now time.Time) error {
	if !now.Before(c.NotBefore) && now.Before(c.NotAfter) {
		return nil
	}
	text := fmt.Sprintf("credentials that the hub just issued are valid from %s to %s, and it is %s here",
		c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	if clock == nil {
		return wire.Fail(wire.LegTLS, wire.CodeUnauthenticated, "%s", text).WithCause(&ClockError{Ahead: now.Sub(c.NotBefore)}).
			WithHint("set the clocks of this machine and of the hub, for instance with NTP")
	}
	return wire.Fail(wire.LegTLS, wire.CodeUnauthenticated, "%s: %s", text, clock).WithCause(clock).
		WithHint("set the clock of this machine or of the hub, whichever is wrong, for instance with NTP")
}

// blameClock adds a word about the clocks to a refusal by the hub, where they may
// be its reason.
func blameClock(err error, sent, received time.Time) error {
	var p *api.Problem
	var f *wire.Failure
	if !errors.As(err, &p) || !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated {
		return err
	}
	clock := compareClocks(p.HubTime, sent, received)
	if clock == nil {
		return err
	}
	told := *f
	told.Err = errors.Join(clock, f.Err)
	if told.Hint != "" {
		told.Hint += "; "
	}
	told.Hint += clock.Error()
	return &told
}

package hub

import (
	"context"
	"time"
)

// By tells how many credentials of an authority are alive, and until when
// the last of them is.
func (i *Issued) By(pin string, now time.Time) (n int, until time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, one := range i.all {
		if one.issuedBy(pin) && one.alive(now) {
			n++
			until = later(until, one.Expires)
		}
	}
	return n, until
}

// Uninformed tells how many parties may not know the trust bundle of a generation
// yet, and when they must at the latest. A party knows it once a connection
// proves that it holds credentials that came with the bundle; that these were
// issued proves nothing, since the answer may have been lost.
func (i *Issued) Uninformed(generation int, now time.Time) (n int, until time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for serial, one := range i.all {
		if one.Generation < generation && one.alive(now) && !i.informed(serial, generation) {
			n++
			until = later(until, one.Expires)
		}
	}
	return n, until
}

// informed reports whether the process that a certificate was issued to uses one
// that came with the bundle of a generation; i.mu is held.
func (i *Issued) informed(serial string, generation int) bool {
	for _, next := range i.next[serial] {
		one := i.all[next]
		if one == nil {
			continue
		}
		if one.Generation >= generation && i.cutter != nil && i.cutter.Holds(next) || i.informed(next, generation) {
			return true
		}
	}
	return false
}

// Distrust revokes the credentials that an authority issued, and cuts their
// connections and those of certificates that no issuance knows: somebody else may
// have issued them. Parties may get new credentials at once; their bus users
// stay as they are.
func (i *Issued) Distrust(ctx context.Context, pin string) {
	var revoked []Issuance
	i.mu.Lock()
	for _, one := range i.all {
		if one.issuedBy(pin) && !one.Revoked {
			i.roster.stand(one, -1)
			one.Revoked = true
			revoked = append(revoked, *one)
		}
	}
	cutter := i.cutter
	i.mu.Unlock()
	cut := 0
	if cutter != nil {
		cut = cutter.Cut(func(serial string) bool { return !i.known(serial) || i.Revoked(serial) })
	}
	i.log.Warn("credentials of a distrusted certificate authority revoked", "ca_pin", pin, "credentials", len(revoked), "connections", cut)
	for _, one := range revoked {
		i.write(ctx, one)
	}
}

func (i *Issued) known(serial string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.all[serial] != nil
}

// issuedBy reports whether an authority issued the certificate. What an earlier
// version noted does not say, so that it counts for each.
func (one *Issuance) issuedBy(pin string) bool { return one.Authority == pin || one.Authority == "" }

// alive reports whether the credentials can be used.
func (one *Issuance) alive(now time.Time) bool { return !one.Revoked && now.Before(one.Expires) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

package issuer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Times that relying parties may rely on.
const (
	// TokenLife is how long a token is good.
	TokenLife = time.Hour

	// CacheAge is how long a relying party may keep the set of keys without asking
	// again. It is told much less.
	CacheAge = 15 * time.Minute

	// linger is how long a key stays published after it signed for the last time: until
	// its last token has expired, and whoever verifies that at the last moment can fetch
	// the keys anew. It forgives clocks that differ by CacheAge.
	linger = TokenLife + CacheAge
)

// Schedule says when keys follow each other.
type Schedule struct {
	Age   time.Duration // how long a key signs; 0: until somebody says otherwise
	Ahead time.Duration // how long it is published before that; CacheAge at least
}

// Validate says whether keys can follow each other like this.
func (s Schedule) Validate() error {
	switch {
	case s.Ahead < CacheAge:
		return fmt.Errorf("a key has to be published for %v at least before it signs, and not for %v: relying parties ask that seldom", CacheAge, s.Ahead)
	case s.Age != 0 && s.Age < s.Ahead+linger:
		return fmt.Errorf("a key has to sign for %v at least, and not for %v: the next one is published for %v before, the last one %v after",
			s.Ahead+linger, s.Age, s.Ahead, linger)
	}
	return nil
}

// What a Ring answers.
var (
	ErrRotating   = errors.New("the next key is published already")
	ErrUnknownKey = errors.New("there is no such key")
)

// Ring is the keys of an issuer at a moment: one that signs, and those before and after
// it. Its methods are pure: they change the ring, and nothing is kept anywhere. The zero
// Ring has no key.
type Ring struct {
	keys []Key // the one that signs first, then the newest first
}

// Keys returns the keys, the one that signs first.
func (r *Ring) Keys() []Key { return slices.Clone(r.keys) }

// Signing returns the key that signs.
func (r *Ring) Signing() (Key, bool) {
	for _, k := range r.keys {
		if k.Phase == Signing {
			return k, true
		}
	}
	return Key{}, false
}

// maker makes a key; NewKey does.
type maker func(t KeyType, now time.Time) (Key, error)

// Step does what is due: it makes the first key or the next one, has the published one
// sign, and removes those that are of no use any more. It reports whether anything
// changed. With an error, the ring is as it was.
func (r *Ring) Step(now time.Time, s Schedule, t KeyType, newKey maker) (changed bool, err error) {
	next := Ring{keys: slices.Clone(r.keys)}
	next.keys = slices.DeleteFunc(next.keys, func(k Key) bool { return k.Phase == Retiring && !now.Before(k.Since.Add(linger)) })
	changed = len(next.keys) != len(r.keys)
	published := next.index(Published)
	signing := next.index(Signing)
	switch {
	case signing < 0 && published < 0:
		k, err := newKey(t, now)
		if err != nil {
			return false, err
		}
		next.add(k, Signing, now)
		changed = true
	case published >= 0 && (signing < 0 || !now.Before(next.keys[published].Since.Add(s.Ahead))):
		next.switchTo(published, now)
		changed = true
	case published < 0 && next.due(next.keys[signing], now, s, t):
		k, err := newKey(t, now)
		if err != nil {
			return false, err
		}
		next.add(k, Published, now)
		changed = true
	}
	if changed {
		next.sort()
		*r = next
	}
	return changed, nil
}

// due reports whether the next key has to be published.
func (r *Ring) due(signing Key, now time.Time, s Schedule, t KeyType) bool {
	return signing.Type != t || s.Age > 0 && !now.Before(signing.Since.Add(s.Age-s.Ahead))
}

// Rotate publishes the next key, which signs when the time of the schedule has passed; or
// with atOnce has it sign now, and one that is published already too. Relying parties
// that know it not then have to ask for the keys when they meet its first token, as all
// that follow the standard do.
func (r *Ring) Rotate(now time.Time, atOnce bool, t KeyType, newKey maker) error {
	published := r.index(Published)
	if published >= 0 && !atOnce {
		return ErrRotating
	}
	if published < 0 {
		k, err := newKey(t, now)
		if err != nil {
			return err
		}
		r.add(k, Published, now)
		published = r.index(Published)
	}
	if atOnce {
		r.switchTo(published, now)
	}
	r.sort()
	return nil
}

// Withdraw removes a key, by its ID or the beginning of it (six characters at least),
// whatever it is doing: no token that it signed is good any more for whoever asks for the
// keys. Step then sees to a successor.
func (r *Ring) Withdraw(id string) (Key, error) {
	found := -1
	for i, k := range r.keys {
		if k.ID == id || len(id) >= minKeyPrefix && strings.HasPrefix(k.ID, id) {
			if found >= 0 {
				return Key{}, fmt.Errorf("%w: %.60q begins the IDs of several", ErrUnknownKey, id)
			}
			found = i
		}
	}
	if found < 0 {
		return Key{}, fmt.Errorf("%w: %.60q", ErrUnknownKey, id)
	}
	k := r.keys[found]
	r.keys = slices.Delete(slices.Clone(r.keys), found, found+1)
	return k, nil
}

// minKeyPrefix is how much of an ID has to be given.
const minKeyPrefix = 6

// Ends returns when a key's phase ends by itself; a zero time means never.
func (r *Ring) Ends(k Key, s Schedule) time.Time {
	switch {
	case k.Since.IsZero():
		return time.Time{}
	case k.Phase == Published:
		return k.Since.Add(s.Ahead)
	case k.Phase == Retiring:
		return k.Since.Add(linger)
	case r.index(Published) >= 0:
		return r.Ends(r.keys[r.index(Published)], s)
	case s.Age > 0:
		return k.Since.Add(s.Age)
	}
	return time.Time{}
}

func (r *Ring) index(p Phase) int {
	return slices.IndexFunc(r.keys, func(k Key) bool { return k.Phase == p })
}

func (r *Ring) add(k Key, p Phase, now time.Time) {
	k.Phase, k.Since = p, now
	r.keys = append(slices.Clone(r.keys), k)
}

// switchTo has a key sign, and the one that did retire.
func (r *Ring) switchTo(i int, now time.Time) {
	r.keys = slices.Clone(r.keys)
	for j := range r.keys {
		if r.keys[j].Phase == Signing {
			r.keys[j].Phase, r.keys[j].Since = Retiring, now
		}
	}
	r.keys[i].Phase, r.keys[i].Since = Signing, now
}

func (r *Ring) sort() {
	slices.SortStableFunc(r.keys, func(a, b Key) int {
		if (a.Phase == Signing) != (b.Phase == Signing) {
			if a.Phase == Signing {
				return -1
			}
			return 1
		}
		return b.Created.Compare(a.Created)
	})
}

// check says whether a ring that was read makes sense.
func (r *Ring) check() error {
	ids := make(map[string]bool)
	signing, published := 0, 0
	for _, k := range r.keys {
		if ids[k.ID] {
			return fmt.Errorf("it holds the key %s twice", k.ID)
		}
		ids[k.ID] = true
		switch k.Phase {
		case Signing:
			signing++
		case Published:
			published++
		case Retiring:
		default:
			return fmt.Errorf("its key %s is %.40q", k.ID, k.Phase)
		}
	}
	if signing > 1 || published > 1 {
		return fmt.Errorf("%d of its keys sign and %d are published for later: at most one of each makes sense", signing, published)
	}
	return nil
}

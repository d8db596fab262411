package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

// look is how often it is looked whether a change of keys is due, or somebody else
// changed them.
const look = 2 * time.Second

// Config says what an Issuer is.
type Config struct {
	// URL is the issuer's name: "iss" of its tokens, to the letter. See config.ValidateIssuerURL.
	URL string

	Keys     Keys
	Schedule Schedule
	Type     KeyType // of the keys that it makes

	Metrics *observe.Issuer  // nil: nothing is counted
	Log     *slog.Logger     // nil: none
	Now     func() time.Time // nil: time.Now

	newKey maker
}

// Issuer signs identity tokens and serves the documents with which they are verified.
// It is safe for concurrent use.
type Issuer struct {
	c    Config
	path string // of the URL; empty for none
	view atomic.Pointer[view]

	mu    sync.Mutex // one change at a time
	stamp string     // of the keys in view
}

// view is what an Issuer works with until its keys change.
type view struct {
	ring      Ring
	signer    jose.Signer
	discovery document
	keys      document
}

// Open returns an issuer, and makes its first key if there is none. Run it, or no key
// follows another.
func Open(c Config) (*Issuer, error) {
	if err := config.ValidateIssuerURL(c.URL); err != nil {
		return nil, err
	}
	if c.Type.Algorithm() == "" {
		return nil, fmt.Errorf("type of signing keys %.40q: want %s, %s or %s", c.Type, RSA2048, RSA3072, ECDSAP256)
	}
	if err := c.Schedule.Validate(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.newKey == nil {
		c.newKey = NewKey
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	i := &Issuer{c: c, path: u.Path}
	if err := i.step(); err != nil {
		return nil, err
	}
	c.Metrics.Watch(i.counts, i.signingAge)
	return i, nil
}

// URL returns the issuer's name.
func (i *Issuer) URL() string { return i.c.URL }

// now is the time in records and tokens.
func (i *Issuer) now() time.Time { return i.c.Now().UTC().Truncate(time.Second) }

// Run sees to it that keys follow each other, until ctx ends.
func (i *Issuer) Run(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := i.step()
		switch {
		case err == nil:
			failed = ""
		case err.Error() != failed: // the old keys stay in use, and it is tried again
			failed = err.Error()
			i.c.Log.Error("the issuer's keys cannot be read or changed", "error", err)
		}
	}
}

// step takes over what somebody else changed, and does what is due.
func (i *Issuer) step() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	stamp := i.c.Keys.Stamp()
	v := i.view.Load()
	if v == nil || stamp != i.stamp {
		r, err := i.c.Keys.Load()
		if err != nil {
			return err
		}
		if len(r.keys) > 0 {
			if err := i.use(r); err != nil {
				return err
			}
			i.stamp = stamp
			v = i.view.Load()
		}
	}
	if _, readOnly := i.c.Keys.(*Mounted); readOnly {
		return nil
	}
	var now Ring
	if v != nil {
		now.keys = slices.Clone(v.ring.keys)
	}
	nothing := func(KeyType, time.Time) (Key, error) { return Key{}, errDue }
	if changed, err := now.Step(i.now(), i.c.Schedule, i.c.Type, nothing); !changed && !errors.Is(err, errDue) {
		return err
	}
	return i.change(func(*Ring) error { return nil })
}

// errDue says that a key has to be made.
var errDue = errors.New("a key is due")

// change changes the keys, and does what is due then; i.mu is held.
func (i *Issuer) change(change func(*Ring) error) error {
	var before []Key
	r, err := i.c.Keys.Change(func(r *Ring) (bool, error) {
		before = r.Keys()
		if err := change(r); err != nil {
			return false, err
		}
		if _, err := r.Step(i.now(), i.c.Schedule, i.c.Type, i.c.newKey); err != nil {
			return false, err
		}
		return !slices.Equal(before, r.keys), nil
	})
	if err != nil {
		return err
	}
	i.tell(before, r.keys)
	if err := i.use(r); err != nil {
		return err
	}
	i.stamp = i.c.Keys.Stamp()
	return nil
}

// tell logs what changed.
func (i *Issuer) tell(before, after []Key) {
	for _, k := range after {
		n := slices.IndexFunc(before, func(b Key) bool { return b.ID == k.ID })
		if n < 0 || before[n].Phase != k.Phase {
			i.c.Log.Info("a signing key of the issuer changed", "key", k.ID, "phase", string(k.Phase), "type", string(k.Type))
		}
	}
	for _, k := range before {
		if !slices.ContainsFunc(after, func(a Key) bool { return a.ID == k.ID }) {
			i.c.Log.Info("a signing key of the issuer is gone", "key", k.ID, "type", string(k.Type))
		}
	}
}

// use works with a ring from now on.
func (i *Issuer) use(r Ring) error {
	k, ok := r.Signing()
	if !ok {
		return fmt.Errorf("%w: none of them signs", ErrCorrupt)
	}
	signer, err := newSigner(k)
	if err != nil {
		return err
	}
	v := &view{ring: r, signer: signer}
	if v.discovery, err = discoveryDocument(i.c.URL, r.keys); err != nil {
		return err
	}
	if v.keys, err = keysDocument(r.keys); err != nil {
		return err
	}
	i.view.Store(v)
	return nil
}

// Keys returns the keys, the one that signs first.
func (i *Issuer) Keys() []Key { return i.view.Load().ring.Keys() }

// Describe returns the keys as the API tells them, the one that signs first.
func (i *Issuer) Describe() []api.IssuerKey {
	r := i.view.Load().ring
	all := Describe(r)
	for n, k := range r.keys {
		all[n].Ends = r.Ends(k, i.c.Schedule)
	}
	return all
}

// Describe returns the keys of a ring as the API tells them, where it is not known what
// the schedule is.
func Describe(r Ring) []api.IssuerKey {
	all := make([]api.IssuerKey, 0, len(r.keys))
	for _, k := range r.keys {
		one := api.IssuerKey{ID: k.ID, Type: string(k.Type), Phase: string(k.Phase), Created: k.Created, Since: k.Since}
		if k.Phase == Retiring {
			one.Ends = r.Ends(k, Schedule{})
		}
		all = append(all, one)
	}
	return all
}

// Rotate publishes the next key, or with atOnce has it sign now. Errors are
// *wire.Failure.
func (i *Issuer) Rotate(atOnce bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return keysFailure(i.change(func(r *Ring) error { return r.Rotate(i.now(), atOnce, i.c.Type, i.c.newKey) }))
}

// Withdraw removes a key at once, and returns its ID. See Ring.Withdraw. Errors are
// *wire.Failure.
func (i *Issuer) Withdraw(id string) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var gone Key
	err := i.change(func(r *Ring) (err error) {
		gone, err = r.Withdraw(id)
		return err
	})
	return gone.ID, keysFailure(err)
}

// keysFailure words why keys were not changed.
func keysFailure(err error) error {
	if err == nil {
		return nil
	}
	f := wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err).WithCause(err)
	switch {
	case errors.Is(err, ErrRotating):
		f.Hint = "wait until it signs, or have it sign at once with --at-once; see: postern issuer keys"
	case errors.Is(err, ErrUnknownKey):
		f.Hint = "see which there are: postern issuer keys"
	case errors.Is(err, ErrReadOnly):
		f.Hint = "change the files there; the issuer follows within seconds"
	default:
		f.Code = wire.CodeInternal
	}
	return f
}

// counts returns how many keys are in each phase.
func (i *Issuer) counts() map[string]int {
	n := map[string]int{string(Published): 0, string(Signing): 0, string(Retiring): 0}
	for _, k := range i.view.Load().ring.keys {
		n[string(k.Phase)]++
	}
	return n
}

// signingAge returns for how long the key has signed that does; 0 if that is not known.
func (i *Issuer) signingAge() time.Duration {
	k, _ := i.view.Load().ring.Signing()
	if k.Since.IsZero() {
		return 0
	}
	return max(i.now().Sub(k.Since), 0)
}

// Owns reports whether a request is for one of the issuer's documents.
func (i *Issuer) Owns(r *http.Request) bool {
	return r.URL.Path == i.path+discoveryPath || r.URL.Path == i.path+keysPath
}

// ServeHTTP implements http.Handler: the two documents, for everybody.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := i.view.Load()
	switch r.URL.Path {
	case i.path + discoveryPath:
		i.c.Metrics.Served("discovery")
		v.discovery.serve(w, r)
	case i.path + keysPath:
		i.c.Metrics.Served("keys")
		v.keys.serve(w, r)
	default:
		http.NotFound(w, r)
	}
}

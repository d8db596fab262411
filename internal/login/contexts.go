package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"postern.dev/postern/internal/wire"
)

// Context is a hub, how to reach it, and the organization to work in there.
type Context struct {
	Name         string `json:"name" yaml:"name"`
	Hub          string `json:"hub" yaml:"hub"` // https://HOST[:PORT]
	CAFile       string `json:"caFile,omitempty" yaml:"caFile,omitempty"`
	CAPin        string `json:"caPin,omitempty" yaml:"caPin,omitempty"`
	ProxyURL     string `json:"proxyUrl,omitempty" yaml:"proxyUrl,omitempty"`
	ProxyCAFile  string `json:"proxyCaFile,omitempty" yaml:"proxyCaFile,omitempty"`
	Organization string `json:"organization,omitempty" yaml:"organization,omitempty"`
	User         string `json:"user,omitempty" yaml:"user,omitempty"` // who signed in last
}

// Contexts is what the file of contexts holds.
type Contexts struct {
	Current  string    `json:"current,omitempty" yaml:"current,omitempty"`
	Contexts []Context `json:"contexts,omitempty" yaml:"contexts,omitempty"`
}

// Tokens are the secrets of a context.
type Tokens struct {
	Session  string    `json:"session"` // the token to show to the hub
	ID       string    `json:"id"`      // of the session
	Issued   time.Time `json:"issued"`
	Expires  time.Time `json:"expires"` // by this machine's clock
	Refresh  string    `json:"refresh,omitempty"`
	Nonce    string    `json:"nonce,omitempty"` // the secret of api.NonceOf
	Issuer   string    `json:"issuer"`
	IssuerCA string    `json:"issuerCa,omitempty"`
	ClientID string    `json:"clientId"`
	Hub      string    `json:"hub"` // for which they are: they are shown to no other
}

// validContext is what a context may be called: something that fits an argument.
var validContext = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@:-]{0,99}$`)

// Contexts reads the contexts; there may be none.
func (s *Store) Contexts() (Contexts, error) {
	var all Contexts
	b, err := s.read(contextsFile, false)
	if err != nil || b == nil {
		return all, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&all); err != nil && !errors.Is(err, io.EOF) {
		return Contexts{}, s.badFile(contextsFile, err)
	}
	for _, c := range all.Contexts {
		if !validContext.MatchString(c.Name) || !strings.HasPrefix(c.Hub, "https://") {
			return Contexts{}, s.badFile(contextsFile, fmt.Errorf("context %.40q has no good name or no hub", c.Name))
		}
	}
	return all, nil
}

// Find returns the context of a name, or the current one for an empty name. Without
// a name and a current one it returns nil.
func (c Contexts) Find(name string) (*Context, error) {
	if name == "" {
		name = c.Current
	}
	if name == "" {
		return nil, nil //nolint:nilnil // nobody has signed in yet
	}
	i := slices.IndexFunc(c.Contexts, func(one Context) bool { return one.Name == name })
	if i < 0 {
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "there is no context %.100q", name).
			WithHint("see the contexts with: postern context list")
	}
	return &c.Contexts[i], nil
}

// ChangeContexts lets f change the contexts, alone.
func (s *Store) ChangeContexts(ctx context.Context, f func(*Contexts) error) error {
	return s.locked(ctx, func() error {
		all, err := s.Contexts()
		if err != nil {
			return err
		}
		if err := f(&all); err != nil {
			return err
		}
		b, err := yaml.Marshal(all)
		if err != nil {
			return fmt.Errorf("encode contexts: %w", err)
		}
		return s.write(contextsFile, b)
	})
}

// Save puts a context into the place of the one with its name, and makes it the
// current one.
func (c *Contexts) Save(one Context) error {
	if !validContext.MatchString(one.Name) {
		return wire.Fail(wire.LegClient, wire.CodeBadRequest, "a context cannot be called %.100q", one.Name).
			WithHint("want letters, digits and any of . _ @ : -, for instance --context work")
	}
	i := slices.IndexFunc(c.Contexts, func(other Context) bool { return other.Name == one.Name })
	if i < 0 {
		c.Contexts = append(c.Contexts, one)
	} else {
		c.Contexts[i] = one
	}
	c.Current = one.Name
	return nil
}

// Delete removes a context. If it was the current one, there is none afterwards.
func (c *Contexts) Delete(name string) error {
	if _, err := c.Find(name); err != nil {
		return err
	}
	c.Contexts = slices.DeleteFunc(c.Contexts, func(one Context) bool { return one.Name == name })
	if c.Current == name {
		c.Current = ""
	}
	return nil
}

// Tokens returns the tokens of a context; ok is false if there are none.
func (s *Store) Tokens(name string) (t Tokens, ok bool, err error) {
	all, err := s.tokens()
	if err != nil {
		return Tokens{}, false, err
	}
	t, ok = all[name]
	return t, ok, nil
}

func (s *Store) tokens() (map[string]Tokens, error) {
	all := make(map[string]Tokens)
	b, err := s.read(tokensFile, true)
	if err != nil || b == nil {
		return all, err
	}
	if err := json.Unmarshal(b, &all); err != nil {
		// The error could quote what the file holds.
		return nil, s.badFile(tokensFile, errors.New("it is not what this program writes"))
	}
	return all, nil
}

// SaveTokens replaces the tokens of a context; nil removes them.
func (s *Store) SaveTokens(ctx context.Context, name string, t *Tokens) error {
	return s.locked(ctx, func() error { return s.putTokens(name, t) })
}

// putTokens is SaveTokens for whoever holds the lock.
func (s *Store) putTokens(name string, t *Tokens) error {
	all, err := s.tokens()
	if err != nil {
		return err
	}
	delete(all, name)
	if t != nil {
		all[name] = *t
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("encode tokens: %w", err)
	}
	return s.write(tokensFile, append(b, '\n'))
}

// lockPause is how often a lock that another process has is tried.
const lockPause = 20 * time.Millisecond

// locked calls f while no other process changes the store.
func (s *Store) locked(ctx context.Context, f func() error) error {
	if err := s.makeDir(); err != nil {
		return err
	}
	for {
		unlock, err := lock(s.dir)
		if err != nil {
			return storeFailure(s.dir, err)
		}
		if unlock != nil {
			defer unlock()
			return f()
		}
		select {
		case <-ctx.Done():
			return wire.Fail(wire.LegClient, wire.CodeTimeout, "another postern holds %s for too long", s.dir).WithCause(ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

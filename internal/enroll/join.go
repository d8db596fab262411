package enroll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/joinstring"
	"postern.dev/postern/internal/wholefile"
	"postern.dev/postern/internal/wire"
)

// Joining gives an agent the key with which it enrols from then on: it makes one,
// and shows its public half to the hub with the secret of a join string. The state
// directory holds what comes of it; see joinstring.MembershipFile.
//
// It may be stopped at any moment and begun again with the same directory: the hub
// takes the same key with the same secret twice. So may several replicas that
// share the directory do it at once.
type Joining struct {
	Dir    string // the state directory; made if there is none
	String string // the join string; empty when the agent has joined and it is gone
	Log    *slog.Logger
}

// KeyFile returns where the agent's private key is once Run has returned nil.
func (j *Joining) KeyFile() string { return filepath.Join(j.Dir, joinstring.KeyFile) }

// pending returns where the key for a join string is until the hub has it.
func (j *Joining) pending(id string) string { return j.KeyFile() + "." + id }

// Run makes sure that the directory holds a key that was registered. It asks the
// hub only for a join string that was not used with this directory. Errors are
// *wire.Failure, as those of Session.Start.
func (j *Joining) Run(ctx context.Context, hub Hub) error {
	member, joined, err := j.membership()
	if err != nil {
		return err
	}
	if j.String == "" {
		if !joined {
			return wire.Fail(wire.LegHub, wire.CodeBadRequest, "state directory %s holds no %s: this agent has not joined", j.Dir, joinstring.MembershipFile).
				WithHint("start it once with a join string, which is made with: postern agent new AGENT")
		}
		return j.settle(member)
	}
	s, err := joinstring.Parse(j.String)
	if err != nil {
		return wire.Fail(wire.LegHub, wire.CodeBadRequest, "the join string cannot be used: %s", err).WithCause(err).
			WithHint("copy it whole, from %s on", joinstring.Prefix)
	}
	if joined && member.JoinID == s.ID {
		j.Log.Info("joined already; the join string is not needed any more", "state", j.Dir, "join", s.ID)
		return j.settle(member)
	}
	if err := j.join(ctx, hub, s); err != nil {
		now, other, _ := j.membership()
		switch {
		case other && now.JoinID == s.ID: // another replica was quicker
			return j.settle(now)
		case joined && Permanent(err):
			j.Log.Warn("the join string was refused; going on with the key that this agent has", "error", err, "state", j.Dir)
			return nil
		}
		return err
	}
	return nil
}

// join uses a join string.
func (j *Joining) join(ctx context.Context, hub Hub, s joinstring.String) error {
	key, err := j.key(s.ID)
	if err != nil {
		return err
	}
	if err := j.show(ctx, hub, s, key.Public()); err != nil {
		return err
	}
	member := s.Membership(key.Public().ID(), time.Now())
	if err := j.keep(member); err != nil {
		return err
	}
	j.Log.Info("joined", "join", s.ID, "key", member.KeyID, "state", j.Dir)
	return j.settle(member)
}

// show shows the secret and the public key to the hub.
func (j *Joining) show(ctx context.Context, hub Hub, s joinstring.String, key identity.PublicKey) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	client := &api.Client{BaseURL: hub.BaseURL(), HTTP: hub.HTTPClient()}
	sent := time.Now()
	got, err := client.Join(ctx, api.UseJoin{Organization: s.Organization, ID: s.ID, Secret: s.Secret, PublicKey: string(key.PEM())})
	if api.IsNotFound(err) {
		return wire.AsFailure(err, wire.LegHub).WithHint("the hub is too old for join strings; upgrade it, or register the agent's key with: postern agent register")
	}
	if err != nil {
		return blameClock(err, sent, time.Now())
	}
	if got.Organization != s.Organization || got.Agent != s.Agent || got.KeyID != key.ID() {
		return badAnswer(fmt.Errorf("it registered key %.80q for agent %.80q of organization %.80q", got.KeyID, got.Agent, got.Organization))
	}
	return nil
}

// membership reads what an earlier run left.
func (j *Joining) membership() (m joinstring.Membership, joined bool, err error) {
	name := filepath.Join(j.Dir, joinstring.MembershipFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err == nil {
		m, err = joinstring.ParseMembership(b)
	}
	if err != nil {
		return m, false, badState(name, err)
	}
	return m, true, nil
}

// key returns the key for a join string, made if there is none.
func (j *Joining) key(id string) (*identity.AgentKey, error) {
	name := j.pending(id)
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		if err := j.makeKey(name); err != nil {
			return nil, badState(name, err)
		}
	}
	key, _, err := readKeyFile(name)
	return key, err
}

func (j *Joining) makeKey(name string) error {
	if err := os.MkdirAll(j.Dir, 0o700); err != nil {
		return err
	}
	key, err := identity.NewAgentKey(identity.KeyEd25519)
	if err != nil {
		return err
	}
	b, err := key.PEM()
	if err != nil {
		return err
	}
	if err := wholefile.Create(name, b, 0o600); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil // another replica made one
}

// keep writes down that the agent has joined.
func (j *Joining) keep(m joinstring.Membership) error {
	name := filepath.Join(j.Dir, joinstring.MembershipFile)
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = wholefile.Replace(name, append(b, '\n'), 0o600)
	}
	if err != nil {
		return badState(name, err)
	}
	return nil
}

// settle puts the key that was registered into its place, unless it is there.
func (j *Joining) settle(member joinstring.Membership) error {
	name := j.pending(member.JoinID)
	key, _, err := readKeyFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist): // long in its place
		return nil
	case err != nil:
		return err
	case key.Public().ID() != member.KeyID: // a replica made it too late
		err = os.Remove(name)
	default:
		err = os.Rename(name, j.KeyFile())
	}
	if errors.Is(err, fs.ErrNotExist) { // another replica did it
		return nil
	}
	if err == nil {
		err = wholefile.SyncDir(j.Dir)
	}
	if err != nil {
		return badState(name, err)
	}
	return nil
}

func badState(name string, err error) error {
	return wire.Fail(wire.LegHub, wire.CodeBadRequest, "the agent's state %s cannot be used: %s", name, plain(err)).WithCause(err).
		WithHint("--state names a directory of this agent alone, which the user that runs it may write")
}

// Learn keeps the hub's authorities, by which an agent that joined with a pin
// knows the hub when it starts again after they have changed.
func (j *Joining) Learn(authorities []byte) {
	member, joined, err := j.membership()
	if err != nil || !joined || member.CAPin == "" {
		return // a hub with the certificate of a public CA is known by that
	}
	name := filepath.Join(j.Dir, joinstring.AuthorityFile)
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, authorities) {
		return
	}
	if err := wholefile.Replace(name, authorities, 0o600); err != nil {
		j.Log.Warn("the hub's authorities are not kept; after they have changed, this agent needs the new CA to start", "file", name, "error", err)
	}
}

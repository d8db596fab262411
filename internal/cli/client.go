package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/login"
	"postern.dev/postern/internal/uplink"
)

// callTimeout bounds what a command asks of a hub.
const callTimeout = 30 * time.Second

// hubFlags are the settings of a command that talks to a hub.
type hubFlags struct {
	world    command.World
	settings config.Client
	set      *config.Set
}

// bindHub adds those settings to a command.
func bindHub(w command.World, cmd *cobra.Command) *hubFlags {
	h := &hubFlags{world: w, settings: config.DefaultClient()}
	h.set = config.Bind(&h.settings)
	command.Bind(cmd, h.set)
	contextFlag(w, cmd)
	return h
}

// call loads the settings and calls f with a client for the hub and the
// organization.
func (h *hubFlags) call(cmd *cobra.Command, f func(ctx context.Context, c *api.Client, org string) error) error {
	return h.callFor(cmd, callTimeout, f)
}

// callFor is call for what may take longer.
func (h *hubFlags) callFor(
	cmd *cobra.Command, limit time.Duration, f func(ctx context.Context, c *api.Client, org string) error,
) error {
	if err := h.set.Load(h.world.Env); err != nil {
		return err
	}
	s := h.settings
	d, err := uplink.New(uplink.Config{
		ConnectURL: s.Hub, CAFile: s.CAFile, CAPin: s.CAPin, ProxyURL: s.ProxyURL, ProxyCAFile: s.ProxyCAFile, Getenv: h.world.Getenv,
	})
	if err != nil {
		return err
	}
	defer d.CloseIdle()
	ctx, cancel := context.WithTimeout(cmd.Context(), limit)
	defer cancel()
	var secret enroll.Secret = &enroll.RobotToken{File: s.TokenFile, Value: s.Token.Reveal()}
	if s.SignedIn() {
		if secret, err = signedIn(h.world, s.Context); err != nil {
			return err
		}
	}
	token, _, err := secret.SubjectToken(ctx)
	if err != nil {
		return err
	}
	return f(ctx, &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient(), Token: token}, s.Organization)
}

// signedIn returns the session of a context.
func signedIn(w command.World, name string) (enroll.Secret, error) {
	store, err := login.Open(w.Getenv)
	if err != nil {
		return nil, err
	}
	return &login.Session{Store: store, Context: name, Getenv: w.Getenv}, nil
}

// contextOf returns what a context sets, as config.Environment.Context wants it.
func contextOf(w command.World) func(string) (map[string]string, error) {
	return func(name string) (map[string]string, error) {
		store, err := login.Open(w.Getenv)
		if err != nil {
			if name == "" {
				return nil, nil // where nothing can be kept, nothing is
			}
			return nil, err
		}
		all, err := store.Contexts()
		if err != nil {
			return nil, err
		}
		c, err := all.Find(name)
		if err != nil || c == nil {
			return nil, err
		}
		return map[string]string{
			"context": c.Name, "hub": c.Hub, "ca-file": c.CAFile, "ca-pin": c.CAPin, "proxy-url": c.ProxyURL, "proxy-ca-file": c.ProxyCAFile,
			"organization": c.Organization,
		}, nil
	}
}

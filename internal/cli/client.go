package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
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
	secret := &enroll.RobotToken{File: s.TokenFile, Value: s.Token.Reveal()}
	token, _, err := secret.SubjectToken(ctx)
	if err != nil {
		return err
	}
	return f(ctx, &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient(), Token: token}, s.Organization)
}

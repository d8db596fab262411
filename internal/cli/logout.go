package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/login"
	"postern.dev/postern/internal/wire"
)

func newLogout(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "logout [CONTEXT]",
		Short:   "End the session of a context",
		Long:    "End the session of a context, the current one if none is named: at the hub, at the identity provider and here. The context stays.",
		Example: "  postern logout",
		Args:    command.AtMost("CONTEXT"),
	}
	cmd.ValidArgsFunction = completeContexts(w)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		store, one, err := findContext(w, args)
		if err != nil {
			return err
		}
		t, ok, err := store.Tokens(one.Name)
		if err != nil {
			return err
		}
		if !ok {
			fmt.Fprintf(w.Stderr, "nobody is signed in in context %s\n", one.Name)
			return nil
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		told := endSession(ctx, w, one, t)
		if err := store.SaveTokens(ctx, one.Name, nil); err != nil {
			return err
		}
		fmt.Fprintf(w.Stderr, "signed out of context %s\n", one.Name)
		if told != nil {
			return wire.AsFailure(told, wire.LegHub).WithHint("the tokens are deleted here; at the hub the session ends by %s", t.Expires.Local().Format(time.DateTime))
		}
		return nil
	}
	return cmd
}

// endSession tells hub and provider that a session is over. A hub that does not
// know it any more is fine.
func endSession(ctx context.Context, w command.World, one login.Context, t login.Tokens) error {
	if t.Refresh != "" {
		if p, err := login.NewProvider(ctx, api.SignIn{Issuer: t.Issuer, ClientID: t.ClientID, CA: t.IssuerCA}, w.Getenv); err == nil {
			p.Revoke(ctx, t.Refresh)
			p.Close()
		}
	}
	if t.Hub != one.Hub {
		return nil
	}
	d, err := login.Dial(one, w.Getenv)
	if err != nil {
		return err
	}
	defer d.CloseIdle()
	err = (&api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient(), Token: t.Session}).RevokeSession(ctx, t.ID)
	if api.IsNotFound(err) || wire.AsFailure(err, wire.LegHub) != nil && wire.AsFailure(err, wire.LegHub).Code == wire.CodeUnauthenticated {
		return nil
	}
	return err
}

func newWhoAmI(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "whoami",
		Short:   "Show who you are at a hub, and your roles",
		Long:    "Show whose session or token commands use, and what the hub says of it: user, groups, roles by organization.",
		Example: "  postern whoami",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			me, err := c.WhoAmI(ctx)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, me, func(r *rows) {
				r.row("PRINCIPAL", me.Principal)
				r.row("HUB", c.BaseURL)
				if hub.settings.SignedIn() {
					r.row("CONTEXT", hub.settings.Context)
				}
				if me.Organization != "" {
					r.row("ORGANIZATION", me.Organization)
				}
				if len(me.Groups) > 0 {
					r.row("GROUPS", strings.Join(me.Groups, ", "))
				}
				if me.Hub {
					r.row("ADMINISTERS", "the hub and all organizations")
				}
				for _, org := range sortedKeys(me.Roles) {
					r.row("ROLE IN "+org, strings.Join(me.Roles[org], ", "))
				}
				if !me.Expires.IsZero() {
					r.row("SESSION", me.Session+", renewed or over by "+me.Expires.Local().Format(time.DateTime))
				}
			})
		})
	}
	return cmd
}

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/hub"
)

// newAdminToken returns "admin-token" with what can be done to it from afar.
func newAdminToken(w command.World) *cobra.Command {
	cmd := command.Group("admin-token", "Replace the administrator's token, or switch it off",
		newAdminTokenRotate(w), newAdminTokenDisable(w))
	cmd.Long = `The administrator's token, DIR/admin.token on the hub, may do everything. It is for the
first steps and for emergencies: once people sign in, switch it off. The hub warns in its
log at each use.`
	return cmd
}

func newAdminTokenRotate(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the administrator's token", Args: command.Exact(),
		Long: `Replace the administrator's token. The old one is void at once, and what was issued on
it is revoked. The hub keeps the new one in DIR/admin.token; with --file it is written
here too. One that was switched off is on again.`,
		Example: "  postern admin-token rotate --file admin.token",
	}
	file := cmd.Flags().StringP("file", "f", "", "`FILE` for the new token, - for standard output")
	settings := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var out *secretFile
		if *file != "" && *file != stdio {
			var err error
			if out, err = newSecretFile(*file, true); err != nil {
				return err
			}
			defer out.discard()
		}
		return settings.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			token, err := c.RotateAdminToken(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintln(w.Stderr, "administrator's token replaced; the hub keeps it in its data directory")
			switch {
			case out != nil:
				return out.commit(api.NewToken{Token: token.Token})
			case *file == stdio:
				_, err = fmt.Fprintln(w.Stdout, token.Token)
				return wrote(err)
			default:
				return nil
			}
		})
	}
	return cmd
}

func newAdminTokenDisable(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "disable", Short: "Switch the administrator's token off", Args: command.Exact(),
		Long: `Switch the administrator's token off and delete it. This takes a user who administers
the hub, so that somebody can afterwards. It is switched on again on the hub's own
machine, while the hub is stopped, with 'postern hub admin-token enable'.`,
		Example: "  postern admin-token disable",
	}
	settings := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return settings.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			if err := c.DisableAdminToken(ctx); err != nil {
				return err
			}
			fmt.Fprintln(w.Stderr, "administrator's token switched off")
			return nil
		})
	}
	return cmd
}

// newHubAdminToken returns "hub admin-token", for the hub's own machine.
func newHubAdminToken(w command.World) *cobra.Command {
	enable := &cobra.Command{
		Use: "enable --data DIR", Short: "Make a new administrator's token on the hub's machine", Args: command.Exact(),
		Long: `Make a new administrator's token in the state directory of a hub that is stopped: after
it was switched off and nobody can sign in, or after it was lost.`,
		Example: "  postern hub admin-token enable --data /var/lib/postern",
	}
	dir := enable.Flags().String("data", "", "directory of the hub's state [POSTERN_DATA]")
	_ = enable.MarkFlagDirname("data") // fails for unknown flags only
	enable.RunE = func(*cobra.Command, []string) error {
		if *dir == "" {
			*dir = w.Getenv("POSTERN_DATA")
		}
		if *dir == "" {
			return &command.UsageError{Err: fmt.Errorf("say where the hub's state is: --data DIR")}
		}
		log, err := w.Logger(config.Log{Format: "auto", Level: "warn"})
		if err != nil {
			return err
		}
		file, err := hub.EnableAdmin(*dir, log)
		if err != nil {
			return err
		}
		fmt.Fprintf(w.Stderr, "administrator's token written to %s; start the hub\n", file)
		return nil
	}
	return command.Group("admin-token", "The administrator's token of a hub that is stopped", enable)
}

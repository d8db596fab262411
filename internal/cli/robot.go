package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/controlplane"
)

// newRobot returns "robot" with what can be done to one and to its tokens.
func newRobot(w command.World) *cobra.Command {
	cmd := command.Group("robot", "Make, list and delete robots and their tokens",
		newRobotCreate(w), newRobotList(w), newRobotDelete(w), newRobotIdentityFor(w), newToken(w))
	cmd.Aliases = []string{"robots"}
	cmd.Long = `A robot is a machine account of an organization. Agents and proxies show one of its
tokens to enrol.`
	return cmd
}

func newRobotCreate(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a robot",
		Long: `Make a robot. It is fine if it exists already.

With --identity-for it may get identity tokens for the providers of these control planes:
see postern robot identity-for, which changes it later.`,
		Example: "  postern robot create proxyagent -a acme\n  postern robot create operator --identity-for prod-1 -a acme",
		Args:    command.Exact("NAME"),
	}
	description := cmd.Flags().StringP("description", "d", "", "what the robot is for")
	identityFor := cmd.Flags().StringArray("identity-for", nil, "`CONTROL-PLANE` that it may get identity tokens for: NAME or SPACE/GROUP/NAME, with * as wildcard; repeatable")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName("robot", args[0]); err != nil {
			return err
		}
		if _, err := controlplane.ParsePatterns(*identityFor); err != nil {
			return &command.UsageError{Err: fmt.Errorf("--identity-for: %w", err)}
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			_, err := c.CreateRobot(ctx, org, api.CreateRobot{Name: args[0], Description: *description, IdentityFor: *identityFor})
			if api.IsExists(err) && len(*identityFor) > 0 {
				if _, err := c.SetIdentityFor(ctx, org, args[0], *identityFor); err != nil {
					return err
				}
			}
			return made(w, err, "robot %s/%s", org, args[0])
		})
	}
	return cmd
}

func newRobotList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List an organization's robots",
		Example: "  postern robot list -a acme",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.Robots(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("NAME", "CREATED", "IDENTITY FOR", "DESCRIPTION")
				for _, robot := range all {
					r.row(robot.Name, date(robot.Created, ""), strings.Join(robot.IdentityFor, ","), robot.Description)
				}
			})
		})
	}
	return cmd
}

func newRobotDelete(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete a robot and revoke its tokens",
		Long:    "Delete a robot and revoke its tokens. Agents and proxies that enrolled with them are cut off.",
		Example: "  postern robot delete proxyagent -a acme",
		Args:    command.Exact("NAME"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return deleted(w, c.DeleteRobot(ctx, org, args[0]), "robot %s/%s", org, args[0])
		})
	}
	return cmd
}

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/identity"
)

// newOrganization returns "organization" with what can be done to one.
func newOrganization(w command.World) *cobra.Command {
	cmd := command.Group("organization", "Make, list and delete organizations",
		newOrganizationCreate(w), newOrganizationList(w), newOrganizationDelete(w))
	cmd.Aliases = []string{"organizations", "org"}
	cmd.Long = `An organization is a tenant: nothing crosses its border. A hub has one called
"default" from the start.`
	return cmd
}

func newOrganizationCreate(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make an organization",
		Long:    "Make an organization. It is fine if it exists already.",
		Example: "  postern organization create acme",
		Args:    command.Exact("NAME"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName("organization", args[0]); err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			_, err := c.CreateOrganization(ctx, args[0])
			return made(w, err, "organization %s", args[0])
		})
	}
	return cmd
}

func newOrganizationList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List organizations",
		Example: "  postern organization list\n  postern organization list -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			all, err := c.Organizations(ctx)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("NAME", "CREATED")
				for _, o := range all {
					r.row(o.Name, date(o.Created, ""))
				}
			})
		})
	}
	return cmd
}

func newOrganizationDelete(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete an organization with all that belongs to it",
		Long: `Delete an organization with its robots and their tokens; its agents and proxies are
cut off. One that still has robots is deleted with --force only.`,
		Example: "  postern organization delete acme --force",
		Args:    command.Exact("NAME"),
	}
	force := cmd.Flags().Bool("force", false, "delete it although it has robots")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			return deleted(w, c.DeleteOrganization(ctx, args[0], *force), "organization %s", args[0])
		})
	}
	return cmd
}

// checkName refuses a name before it is sent anywhere.
func checkName(kind, name string) error {
	if err := identity.ValidateName(kind, name); err != nil {
		return &command.UsageError{Err: err}
	}
	return nil
}

// made tells that something was made. That it exists already is no error, so
// that a script can be run again.
func made(w command.World, err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	switch {
	case api.IsExists(err):
		fmt.Fprintf(w.Stderr, "%s exists already\n", what)
	case err != nil:
		return err
	default:
		fmt.Fprintf(w.Stderr, "%s created\n", what)
	}
	return nil
}

// deleted tells that something was deleted.
func deleted(w command.World, err error, format string, args ...any) error {
	if err == nil {
		fmt.Fprintf(w.Stderr, format+" deleted\n", args...)
	}
	return err
}

// nonNil makes an empty list print as [] and not as null.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

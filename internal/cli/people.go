package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/role"
)

// newRole returns "role" with what can be done to role bindings.
func newRole(w command.World) *cobra.Command {
	cmd := command.Group("role", "Give and take roles in an organization",
		newRoleGrant(w), newRoleRevoke(w), newRoleList(w))
	cmd.Aliases = []string{"roles"}
	var b strings.Builder
	b.WriteString("Users and groups have roles in organizations. A role gives permissions:\n\n")
	for _, r := range role.Roles() {
		names := make([]string, 0, len(r.Permissions()))
		for _, p := range r.Permissions() {
			names = append(names, string(p))
		}
		fmt.Fprintf(&b, "  %-10s %s\n", r, strings.Join(names, ", "))
	}
	b.WriteString("\nA role is about the hub. To reach anything through an agent, people need an access\ngrant besides.")
	cmd.Long = b.String()
	return cmd
}

// completeRoles completes names of roles.
func completeRoles(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	if len(args) == 0 {
		for _, r := range role.Roles() {
			names = append(names, string(r))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// roleArgs checks a role and whom it is about.
func roleArgs(which, whom string) (api.GrantRole, error) {
	if _, err := role.Parse(which); err != nil {
		return api.GrantRole{}, &command.UsageError{Err: err}
	}
	p, err := identity.ParsePrincipal(whom)
	if err == nil && p.Kind != identity.KindUser && p.Kind != identity.KindGroup {
		err = fmt.Errorf("%s is neither a user nor a group: want user:NAME or group:NAME", p)
	}
	if err != nil {
		return api.GrantRole{}, &command.UsageError{Err: err}
	}
	return api.GrantRole{Role: which, Principal: whom}, nil
}

func newRoleGrant(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "grant ROLE --to user:NAME|group:NAME", Short: "Give a user or group a role",
		Example: `  postern role grant operator --to group:sre -a acme
  postern role grant owner --to user:ann@example.org -a acme`,
		Args: command.Exact("ROLE"), ValidArgsFunction: completeRoles,
	}
	to := cmd.Flags().String("to", "", "who gets it: user:NAME or group:NAME")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		g, err := roleArgs(args[0], *to)
		if err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			_, err := c.GrantRole(ctx, org, g)
			return made(w, err, "role %s of %s in organization %s", g.Role, g.Principal, org)
		})
	}
	return cmd
}

func newRoleRevoke(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ROLE --from user:NAME|group:NAME", Short: "Take a role from a user or group",
		Long:    "Take a role from a user or group. Whoever has none left in the organization is cut off from it.",
		Example: "  postern role revoke operator --from group:sre -a acme",
		Args:    command.Exact("ROLE"), ValidArgsFunction: completeRoles,
	}
	from := cmd.Flags().String("from", "", "who loses it: user:NAME or group:NAME")
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		g, err := roleArgs(args[0], *from)
		if err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			return deleted(w, c.RevokeRole(ctx, org, g), "role %s of %s in organization %s", g.Role, g.Principal, org)
		})
	}
	return cmd
}

func newRoleList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List who has which role in an organization",
		Example: "  postern role list -a acme", Args: command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, org string) error {
			all, err := c.RoleBindings(ctx, org)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("ROLE", "TO", "SINCE", "BY")
				for _, b := range all {
					r.row(b.Role, b.Principal, date(b.Created, ""), b.By)
				}
			})
		})
	}
	return cmd
}

// newUser returns "user" with what can be done to people.
func newUser(w command.World) *cobra.Command {
	cmd := command.Group("user", "List, revoke and allow users", newUserList(w), newUserRevoke(w), newUserAllow(w))
	cmd.Aliases = []string{"users"}
	cmd.Long = `Users are people who have signed in. They are the identity provider's; the hub can lock
one out, at once and until it is allowed again.`
	return cmd
}

func newUserList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List users", Example: "  postern user list", Args: command.Exact(),
	}
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			all, err := c.Users(ctx)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("NAME", "STATE", "LAST SEEN", "GROUPS")
				for _, u := range all {
					state := "allowed"
					if !u.Revoked.IsZero() {
						state = "revoked " + date(u.Revoked, "")
					}
					r.row(u.Name, state, ago(time.Now(), u.LastSeen), strings.Join(u.Groups, ", "))
				}
			})
		})
	}
	return cmd
}

// newUserChange makes the commands that change one user.
func newUserChange(w command.World, verb, short, long, done string, change func(context.Context, *api.Client, string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " USER", Short: short, Long: long, Example: "  postern user " + verb + " ann@example.org", Args: command.Exact("USER"),
	}
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			user := strings.TrimPrefix(args[0], "user:")
			if err := change(ctx, c, user); err != nil {
				return err
			}
			fmt.Fprintf(w.Stderr, "user %s %s\n", printable(user), done)
			return nil
		})
	}
	return cmd
}

func newUserRevoke(w command.World) *cobra.Command {
	return newUserChange(w, "revoke", "Lock a user out",
		`Lock a user out: the user's sessions end, connections and streams that were opened on them
are cut, and the user cannot sign in until allowed again.`, "revoked",
		func(ctx context.Context, c *api.Client, user string) error { return c.RevokeUser(ctx, user) })
}

func newUserAllow(w command.World) *cobra.Command {
	return newUserChange(w, "allow", "Let a revoked user sign in again", "Let a revoked user sign in again. Sessions of before stay ended.", "allowed",
		func(ctx context.Context, c *api.Client, user string) error { return c.AllowUser(ctx, user) })
}

// newSession returns "session" with what can be done to sessions.
func newSession(w command.World) *cobra.Command {
	cmd := command.Group("session", "List and revoke sessions", newSessionList(w), newSessionRevoke(w))
	cmd.Aliases = []string{"sessions"}
	cmd.Long = "A session is a person signed in from one place. You see your own; who administers the hub sees all."
	return cmd
}

func newSessionList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List sessions", Example: "  postern session list", Args: command.Exact(),
	}
	user := cmd.Flags().String("user", "", "list those of this user only")
	output := bindFormat(cmd)
	hub := bindHub(w, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			all, err := c.Sessions(ctx, *user)
			if err != nil {
				return err
			}
			return output.print(w.Stdout, nonNil(all), func(r *rows) {
				r.row("ID", "USER", "SINCE", "RENEWED", "FROM", "CLIENT")
				for _, s := range all {
					r.row(s.ID, s.User, ago(time.Now(), s.Created), ago(time.Now(), s.Renewed), s.Source, s.Client)
				}
			})
		})
	}
	return cmd
}

func newSessionRevoke(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "End a session", Args: command.Exact("ID"),
		Long:    "End a session. Connections and streams that were opened on it are cut.",
		Example: "  postern session revoke 0b1c5d2e-5f0a-4f6e-9b0a-0c6b7f0f6a11",
	}
	hub := bindHub(w, cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var ids []cobra.Completion
		if len(args) == 0 {
			_ = hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
				all, err := c.Sessions(ctx, "")
				for _, s := range all {
					ids = append(ids, cobra.CompletionWithDesc(s.ID, s.User))
				}
				return err
			}) // without an answer there is nothing to complete
		}
		return slices.Clip(ids), cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkName("session", args[0]); err != nil {
			return err
		}
		return hub.call(cmd, func(ctx context.Context, c *api.Client, _ string) error {
			return deleted(w, c.RevokeSession(ctx, args[0]), "session %s", args[0])
		})
	}
	return cmd
}

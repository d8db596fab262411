package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/login"
	"postern.dev/postern/internal/wire"
)

// newContext returns "context" with what can be done to contexts.
func newContext(w command.World) *cobra.Command {
	cmd := command.Group("context", "List, choose, show and delete contexts",
		newContextList(w), newContextUse(w), newContextShow(w), newContextDelete(w))
	cmd.Aliases = []string{"contexts", "ctx"}
	cmd.Long = `A context is a hub, how to reach it, and the organization to work in. 'postern login'
makes one. Commands use the current context for what neither flag nor environment says,
unless --hub is another hub: what belongs to one hub is shown to no other.`
	return cmd
}

// findContext returns the store and the context that an argument names, or the
// current one.
func findContext(w command.World, args []string) (*login.Store, login.Context, error) {
	store, err := login.Open(w.Getenv)
	if err != nil {
		return nil, login.Context{}, err
	}
	all, err := store.Contexts()
	if err != nil {
		return nil, login.Context{}, err
	}
	name := w.Getenv("POSTERN_CONTEXT")
	if len(args) > 0 {
		name = args[0]
	}
	c, err := all.Find(name)
	if err == nil && c == nil {
		err = wire.Fail(wire.LegClient, wire.CodeBadRequest, "there is no current context").
			WithHint("sign in with: postern login HUB, or choose one with: postern context use NAME")
	}
	if err != nil {
		return nil, login.Context{}, err
	}
	return store, *c, nil
}

// contextFlag completes the flag --context of a command, if it has one.
func contextFlag(w command.World, cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("context", // fails without such a flag only
		func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return contextNames(w), cobra.ShellCompDirectiveNoFileComp
		})
}

// completeContexts completes a first argument that is a context.
func completeContexts(w command.World) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return contextNames(w), cobra.ShellCompDirectiveNoFileComp
	}
}

// contextNames returns the contexts with their hubs; none if they cannot be read.
func contextNames(w command.World) (names []cobra.Completion) {
	store, err := login.Open(w.Getenv)
	if err != nil {
		return nil
	}
	all, err := store.Contexts()
	if err != nil {
		return nil
	}
	for _, c := range all.Contexts {
		names = append(names, cobra.CompletionWithDesc(c.Name, c.Hub))
	}
	return names
}

func newContextList(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Example: "  postern context list", Args: command.Exact(),
	}
	output := bindFormat(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		store, err := login.Open(w.Getenv)
		if err != nil {
			return err
		}
		all, err := store.Contexts()
		if err != nil {
			return err
		}
		return output.print(w.Stdout, all, func(r *rows) {
			r.row("CURRENT", "NAME", "HUB", "ORGANIZATION", "USER")
			for _, c := range all.Contexts {
				mark := ""
				if c.Name == all.Current {
					mark = "*"
				}
				r.row(mark, c.Name, c.Hub, c.Organization, c.User)
			}
		})
	}
	return cmd
}

func newContextUse(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: command.Exact("NAME"),
		Long:    "Make a context the current one. With --organization its organization is changed too.",
		Example: "  postern context use hub.example.org --organization acme",
	}
	cmd.ValidArgsFunction = completeContexts(w)
	organization := cmd.Flags().StringP("organization", "a", "", "organization to work in from now on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *organization != "" {
			if err := checkName("organization", *organization); err != nil {
				return err
			}
		}
		store, _, err := findContext(w, args)
		if err != nil {
			return err
		}
		return store.ChangeContexts(cmd.Context(), func(all *login.Contexts) error {
			c, err := all.Find(args[0])
			if err != nil {
				return err
			}
			if *organization != "" {
				c.Organization = *organization
			}
			all.Current = c.Name
			fmt.Fprintf(w.Stderr, "the current context is %s: hub %s, organization %s\n", c.Name, c.Hub, orDefault(c.Organization))
			return nil
		})
	}
	return cmd
}

func newContextShow(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show [NAME]", Short: "Show a context, the current one if none is named", Example: "  postern context show",
		Args: command.AtMost("NAME"),
	}
	cmd.ValidArgsFunction = completeContexts(w)
	output := bindFormat(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		store, c, err := findContext(w, args)
		if err != nil {
			return err
		}
		_, signedIn, err := store.Tokens(c.Name)
		if err != nil {
			return err
		}
		return output.print(w.Stdout, c, func(r *rows) {
			for _, one := range [][2]string{
				{"NAME", c.Name}, {"HUB", c.Hub}, {"CA FILE", c.CAFile}, {"CA PIN", c.CAPin}, {"PROXY", c.ProxyURL},
				{"ORGANIZATION", orDefault(c.Organization)}, {"USER", c.User},
			} {
				if one[1] != "" {
					r.row(one[0], one[1])
				}
			}
			r.row("SIGNED IN", map[bool]string{true: "yes", false: "no"}[signedIn])
			r.row("KEPT IN", store.Dir())
		})
	}
	return cmd
}

func newContextDelete(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a context and its tokens", Args: command.Exact("NAME"),
		Long:    "Delete a context and its tokens from this machine. The session at the hub goes on until it ends: sign out first with 'postern logout NAME'.",
		Example: "  postern context delete hub.example.org",
	}
	cmd.ValidArgsFunction = completeContexts(w)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		store, _, err := findContext(w, args)
		if err != nil {
			return err
		}
		if err := store.ChangeContexts(cmd.Context(), func(all *login.Contexts) error { return all.Delete(args[0]) }); err != nil {
			return err
		}
		return deleted(w, store.SaveTokens(cmd.Context(), args[0], nil), "context %s", args[0])
	}
	return cmd
}

func orDefault(organization string) string {
	if organization == "" {
		return "default"
	}
	return organization
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

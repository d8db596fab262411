package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
)

// newConfig returns "config" with what can be done to settings.
func newConfig(w command.World) *cobra.Command {
	roles := []struct {
		name string
		bind func() *config.Set
	}{
		{"hub", func() *config.Set { s := config.DefaultHub(); return config.Bind(&s) }},
		{"agent", func() *config.Set { s := config.DefaultAgent(); return config.Bind(&s) }},
		{"proxy", func() *config.Set { s := config.DefaultProxy(); return config.Bind(&s) }},
		{"operator", func() *config.Set { s := config.DefaultOperator(); return config.Bind(&s) }},
		{"issuer", func() *config.Set { s := config.DefaultStandaloneIssuer(); return config.Bind(&s) }},
	}
	var prints, checks []*cobra.Command
	for _, role := range roles {
		prints = append(prints, newConfigPrint(w, role.name, role.bind()))
		checks = append(checks, newConfigCheck(w, role.name, role.bind()))
	}
	return command.Group("config", "Check and print the settings of a role",
		command.Group("check", "Check settings without starting anything", checks...),
		command.Group("print", "Print the settings in effect and where they come from", prints...))
}

func newConfigPrint(w command.World, role string, set *config.Set) *cobra.Command {
	cmd := &cobra.Command{
		Use:   role,
		Short: "Print the settings in effect for " + role,
		Long: `Print the settings in effect as a YAML file, each with where it comes from: a flag, an
environment variable, a line of a file, or the default. Secrets are masked. It takes
the flags of 'postern ` + role + `'.`,
		Example: "  postern config print " + role + " --config " + role + ".yaml",
		Args:    command.Exact(),
	}
	all := cmd.Flags().Bool("all", false, "print settings without a value too")
	command.Bind(cmd, set)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := set.Load(w.Env); err != nil {
			return err
		}
		return wrote(set.Render(w.Stdout, *all))
	}
	return cmd
}

func newConfigCheck(w command.World, role string, set *config.Set) *cobra.Command {
	cmd := &cobra.Command{
		Use:   role,
		Short: "Check the settings of " + role,
		Long: `Check settings without starting anything, and report everything that is wrong with
them. Files that they name are not read. It takes the flags of 'postern ` + role + `'.`,
		Example: "  postern config check " + role + " --config " + role + ".yaml",
		Args:    command.Exact(),
	}
	command.Bind(cmd, set)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := set.Load(w.Env); err != nil {
			return err
		}
		fmt.Fprintln(w.Stderr, "the settings can be used")
		return nil
	}
	return cmd
}

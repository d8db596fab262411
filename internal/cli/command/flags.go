package command

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"postern.dev/postern/internal/config"
)

// wordsOf are the flags that may be shortened to one letter.
func short(name string) string {
	switch name {
	case "organization":
		return "a" // as in "up"
	default:
		return ""
	}
}

// Bind adds the settings of a set to a command as flags.
func Bind(cmd *cobra.Command, set *config.Set) {
	cmd.Flags().SortFlags = false
	for _, f := range set.Fields() {
		if !f.OnCommandLine() {
			continue
		}
		usage := f.Usage
		if f.Repeatable() {
			usage += "; repeatable"
		}
		flag := cmd.Flags().VarPF(f, f.Name, short(f.Name), usage+" ["+f.Env()+"]")
		if f.IsBool() {
			flag.NoOptDefVal = "true"
		}
		if strings.HasSuffix(f.Name, "-file") || f.Name == "config" {
			_ = cmd.MarkFlagFilename(f.Name) // fails for unknown flags only
		}
		if f.Name == "data" {
			_ = cmd.MarkFlagDirname(f.Name)
		}
	}
}

// Exact returns an argument check that names what is missing or too much.
func Exact(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing", strings.Join(names[len(args):], " and "))
		}
		if len(args) > len(names) {
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// AtMost is as Exact, but all arguments may be left out.
func AtMost(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// AtLeast is as Exact, but the last argument may be left out or given several times.
func AtLeast(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if need := names[:len(names)-1]; len(args) < len(need) {
			return usagef("%s is missing", strings.Join(need[len(args):], " and "))
		}
		return nil
	}
}

// Group returns a command that only holds others.
func Group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(children...)
	return cmd
}

// VisitFlags calls f for each flag of a command that users see.
func VisitFlags(cmd *cobra.Command, f func(*pflag.Flag)) {
	cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden {
			f(flag)
		}
	})
}

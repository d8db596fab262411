// Package command is what all commands of the programs have in common: the
// world they run in, flags made from settings, logs and metrics of a role, and
// exit codes. It links no role, so that the agent for the edge stays small.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/wire"
)

// World is what a program knows of its surroundings. Tests make their own.
type World struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Env    config.Environment
}

// System returns the world of this process.
func System() World {
	return World{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: config.System()}
}

// Getenv returns an environment variable, or "".
func (w World) Getenv(key string) string {
	v, _ := w.Env.LookupEnv(key)
	return v
}

// Signals returns a context that ends with the first SIGINT or SIGTERM. From
// then on signals have their usual effect: a second one ends the process at once.
func Signals(parent context.Context) (ctx context.Context, stop context.CancelFunc) {
	ctx, stop = signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// Execute runs a program's root command and returns its exit code. What went
// wrong is written to w.Stderr.
func Execute(ctx context.Context, w World, root *cobra.Command) int {
	root.SetArgs(w.Args)
	root.SetIn(w.Stdin)
	root.SetOut(w.Stdout)
	root.SetErr(w.Stderr)
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &UsageError{err} })
	root.SetUsageTemplate(usageTemplate)

	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	if !started { // cobra did not like the command line
		if _, ok := errors.AsType[*UsageError](err); !ok {
			err = &UsageError{err}
		}
	}
	report(w.Stderr, cmd, err)
	return ExitCode(err)
}

// report writes an error for people.
func report(w io.Writer, cmd *cobra.Command, err error) {
	if _, ok := errors.AsType[*ExitError](err); ok {
		return
	}
	name := cmd.CommandPath()
	if problems := config.List(err); len(problems) > 0 {
		fmt.Fprintf(w, "%s: the settings cannot be used:\n", name)
		for _, p := range problems {
			fmt.Fprintf(w, "  %v\n", p)
		}
		fmt.Fprintf(w, "Run '%s --help' to see all settings.\n", name)
		return
	}
	if f, ok := errors.AsType[*wire.Failure](err); ok && f.Hint != "" {
		bare := *f
		bare.Hint = ""
		text := err.Error()
		if err == error(f) { //nolint:errorlint // only a bare failure is taken apart
			text = bare.Error()
		}
		fmt.Fprintf(w, "%s: %s\n", name, text)
		if err == error(f) { //nolint:errorlint // as above
			fmt.Fprintf(w, "  hint: %s\n", f.Hint)
		}
		return
	}
	fmt.Fprintf(w, "%s: %v\n", name, err)
	if _, ok := errors.AsType[*UsageError](err); ok {
		fmt.Fprintf(w, "Run '%s --help' for usage.\n", name)
	}
}

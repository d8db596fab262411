package cli_test

import (
	"context"
	"os"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"postern.dev/postern/internal/cli"
	"postern.dev/postern/internal/cli/agentcmd"
	"postern.dev/postern/internal/cli/command"
)

// TestMain makes the programs known to the scripts in testdata/script.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"postern": func() {
			ctx, stop := command.Signals(context.Background())
			w := command.System()
			code := command.Execute(ctx, w, cli.New(w))
			stop()
			os.Exit(code)
		},
		"postern-agent": func() {
			ctx, stop := command.Signals(context.Background())
			w := command.System()
			code := command.Execute(ctx, w, agentcmd.New(w, "postern-agent"))
			stop()
			os.Exit(code)
		},
	})
}

// TestScripts runs every script: one file per subject, so that a case is added
// without Go. "exit CODE COMMAND" checks the exit code.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": exitCode},
		Setup: func(env *testscript.Env) error {
			env.Setenv("NO_PROXY", "127.0.0.1,localhost")
			return nil
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exitCode runs a command and compares its exit code.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND ARGUMENT...")
	}
	code := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exited, ok := err.(interface{ ExitCode() int }) //nolint:errorlint // *exec.ExitError, as Exec returns it
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = strconv.Itoa(exited.ExitCode())
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

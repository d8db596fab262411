package cli_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"postern.dev/postern/internal/cli"
	"postern.dev/postern/internal/cli/agentcmd"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/testnet"
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
// without Go. "exit CODE COMMAND" checks the exit code, "until REGEXP COMMAND" repeats it
// until it prints a match, and "ready ADDR" waits for the role whose metrics are there; $ADDR, $METRICS and $METRICS2 are free addresses.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": exitCode, "until": until, "ready": ready},
		Setup: func(env *testscript.Env) error {
			env.Setenv("NO_PROXY", "127.0.0.1,localhost")
			for _, name := range []string{"ADDR", "METRICS", "METRICS2"} {
				addr, release, err := testnet.Reserve()
				if err != nil {
					return err
				}
				env.Defer(release)
				env.Setenv(name, addr)
			}
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
		exited, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = strconv.Itoa(exited.ExitCode())
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// until runs a command again and again until it succeeds and prints what it has to.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND ARGUMENT...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		ts.Fatalf("%v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = ts.Exec(args[1], args[2:]...); err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("it does not print %s: %v", want, err)
		}
	}
}

// ready waits until a role says that it is ready.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready ADDR")
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var res *http.Response
		if res, err = client.Get("http://" + args[0] + "/readyz"); err != nil {
			continue
		}
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return
		}
		err = errors.New(res.Status)
	}
	ts.Fatalf("%s is not ready: %v", args[0], err)
}

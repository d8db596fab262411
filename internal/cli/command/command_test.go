package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExitCode(t *testing.T) {
	fail := func(c wire.Code) error { return wire.Fail(wire.LegHub, c, "x") }
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, ExitOK},
		{errors.New("x"), ExitFailure},
		{fmt.Errorf("y: %w", &UsageError{errors.New("x")}), ExitUsage},
		{errors.Join(&config.SettingError{Setting: "a"}, &config.SettingError{Setting: "b"}), ExitUsage},
		{fail(wire.CodeBadRequest), ExitUsage},
		{fail(wire.CodeUnauthenticated), ExitDenied},
		{fmt.Errorf("y: %w", fail(wire.CodeDenied)), ExitDenied},
		{fail(wire.CodeTimeout), ExitUnreachable},
		{fail(wire.CodeWrongPeer), ExitUnreachable},
		{fail(wire.CodeInternal), ExitFailure},
		{&CheckError{"x"}, ExitCheck},
		{wire.Fail(wire.LegHub, wire.CodeBadRequest, "x").WithCause(&api.Problem{Status: http.StatusNotFound}), ExitNotFound},
		{&ExitError{Code: 42, Err: errors.New("x")}, 42},
	} {
		if got := ExitCode(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
	seen := map[int]bool{}
	for _, c := range ExitCodes() {
		if seen[c.Code] || c.Meaning == "" {
			t.Errorf("exit code %d is described twice, or not at all", c.Code)
		}
		seen[c.Code] = true
	}
}

// world returns a world without environment, and what is written to its
// standard error.
func world(args ...string) (World, *bytes.Buffer) {
	var stderr bytes.Buffer
	return World{Args: args, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &stderr,
		Env: config.Environment{LookupEnv: func(string) (string, bool) { return "", false }}}, &stderr
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"plain", errors.New("it broke"), "do: it broke\n"},
		{"usage", &UsageError{errors.New("no")}, "do: no\nRun 'do --help' for usage.\n"},
		{"hint", wire.Fail(wire.LegTCP, wire.CodeRefused, "refused").WithHint("start it"), "do: tcp: refused\n  hint: start it\n"},
		{"wrapped hint", fmt.Errorf("dial: %w", wire.Fail(wire.LegTCP, wire.CodeRefused, "refused").WithHint("start it")), "do: dial: tcp: refused (start it)\n"},
		{"settings", errors.Join(&config.SettingError{Setting: "a", Problem: "bad"}, &config.SettingError{Setting: "b", Problem: "worse"}),
			"do: the settings cannot be used:\n  a: bad\n  b: worse\nRun 'do --help' to see all settings.\n"},
		{"another program's", &ExitError{Code: 3, Err: errors.New("told already")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, stderr := world()
			cmd := &cobra.Command{Use: "do", RunE: func(*cobra.Command, []string) error { return tt.err }}
			if code := Execute(t.Context(), w, cmd); code != ExitCode(tt.err) {
				t.Errorf("exit code %d", code)
			}
			if diff := cmp.Diff(tt.want, stderr.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestRunRole checks that metrics and health are served while a role drains, and
// that it counts as not ready then.
func TestRunRole(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	status := func(path string) int {
		res, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Error(err)
			return 0
		}
		res.Body.Close()
		return res.StatusCode
	}
	w, stderr := world()
	ctx, cancel := context.WithCancel(t.Context())
	err = RunRole(ctx, w, "test", config.Log{Format: "json", Level: "info"}, addr, func(ctx context.Context, tools Tools) error {
		if got := status("/readyz"); got != http.StatusServiceUnavailable {
			t.Errorf("starting: %d", got)
		}
		tools.Health.Register("x", func(context.Context) error { return nil })
		if got := status("/readyz"); got != http.StatusOK {
			t.Errorf("started: %d", got)
		}
		cancel()
		<-ctx.Done()
		for status("/readyz") != http.StatusServiceUnavailable { // told by a function that runs beside
		}
		if got := status("/metrics"); got != http.StatusOK {
			t.Errorf("metrics while draining: %d", got)
		}
		return nil
	})
	if err != nil || !strings.Contains(stderr.String(), `"serving metrics"`) {
		t.Errorf("%v\n%s", err, stderr)
	}
	if _, err := client.Get("http://" + addr + "/healthz"); err == nil {
		t.Error("still served after the role's end")
	}
	if err := RunRole(t.Context(), w, "test", config.Log{Level: "loud"}, "", nil); ExitCode(err) != ExitUsage {
		t.Errorf("level loud: %v", err)
	}
}

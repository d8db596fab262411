package cli

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/kubeconfig"
	"postern.dev/postern/internal/login"
	"postern.dev/postern/internal/wire"
)

// TestGatewayToken: a session is given out as long as it is good, for the hub that it
// is of.
func TestGatewayToken(t *testing.T) {
	dir := t.TempDir()
	w := command.World{Env: config.Environment{LookupEnv: func(key string) (string, bool) { return dir, key == "POSTERN_CONFIG_DIR" }}}
	store, err := login.Open(w.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := config.DefaultGatewayClient()
	s.Hub, s.Context = "https://hub.example.org", "work"
	for _, tt := range []struct {
		life    time.Duration // of the session
		hub     string
		want    time.Duration // until the token is asked for again
		refused wire.Code
	}{
		{life: time.Hour, hub: "https://HUB.example.org:443", want: 59 * time.Minute},
		{life: 2 * time.Minute, hub: s.Hub, want: 2 * time.Minute},
		{life: time.Hour, hub: "https://other.example.org", refused: wire.CodeUnauthenticated},
		{life: -time.Minute, hub: s.Hub, refused: wire.CodeUnauthenticated},
	} {
		tokens := login.Tokens{Session: "secret", Hub: tt.hub, Issued: now, Expires: now.Add(tt.life)}
		if err := store.SaveTokens(t.Context(), "work", &tokens); err != nil {
			t.Fatal(err)
		}
		token, expires, err := gatewayToken(t.Context(), w, &s, now)
		if tt.refused != wire.CodeNone {
			if f, ok := errors.AsType[*wire.Failure](err); !ok || f.Code != tt.refused || f.Hint == "" || token != "" {
				t.Errorf("%s, %s: %q, %v", tt.life, tt.hub, token, err)
			}
			continue
		}
		if err != nil || token != "secret" || !expires.Equal(now.Add(tt.want)) {
			t.Errorf("%s, %s: %q for %s, %v", tt.life, tt.hub, token, expires.Sub(now), err)
		}
	}
}

// TestKubectlSignals: a signal goes to kubectl, and how it ends then is how we end; its
// kubeconfig is gone.
func TestKubectlSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // it has no signals to pass on
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	kubectl := filepath.Join(t.TempDir(), "kubectl")
	const script = "#!/bin/sh\ntrap 'exit 7' TERM\necho ready\nwhile :; do sleep 0.01; done\n"
	if err := os.WriteFile(kubectl, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	out, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		w := command.World{Stdin: strings.NewReader(""), Stdout: stdout, Stderr: io.Discard}
		ended <- runKubectl(w, kubectl, nil, kubeconfig.Entry{Name: "x", User: kubeconfig.User{TokenFile: "/x"}})
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(syscall.SIGTERM)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; command.ExitCode(err) != 7 {
		t.Errorf("exit code %d: %v", command.ExitCode(err), err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

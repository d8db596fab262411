package cli_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/cli"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/hub"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/oidc/oidctest"
	"postern.dev/postern/internal/uplink"
)

// TestDoctorWithWorkloadTokens examines the way of an agent and of a proxy that enrol with
// the tokens of an issuer.
func TestDoctorWithWorkloadTokens(t *testing.T) {
	cfg := config.DefaultHub()
	cfg.Data, cfg.Listen, cfg.DrainTimeout = filepath.Join(t.TempDir(), "hub"), "127.0.0.1:0", 0
	started, ended := make(chan hub.Info, 1), make(chan error, 1)
	one := hub.New(cfg, hub.Options{
		Version: "test", Health: observe.NewHealth(), Log: slog.New(slog.DiscardHandler), Started: func(i hub.Info) { started <- i },
	})
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- one.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var info hub.Info
	select {
	case info = <-started:
	case <-time.After(30 * time.Second):
		t.Fatal("the hub does not start")
	}
	url := "tls://" + info.Listen.String()
	issuer := oidctest.New(t)
	admin, err := administrator(url, info)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.HTTP.CloseIdleConnections()
	for role, name := range map[string]string{"agent": "edge", "proxy": "ci"} {
		if _, err := admin.CreateTrust(t.Context(), "default", api.CreateTrust{
			Name: role, Issuer: issuer.URL, CA: string(issuer.CA), Audiences: []string{"postern"}, Claims: []string{"sub=" + role}, Role: role, Identity: name,
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		sub  string
		args []string
		code int
		want []string
	}{
		{"agent", []string{"--agent-id", "edge"}, 0, []string{"/agent/edge/doctor until", "relay        pass", "agent        skip  the credentials are the agent's own"}},
		{"proxy", []string{"--proxy-name", "ci"}, 0, []string{"/proxy/ci/", "agent        skip  no agent of the organization is connected"}},
		{"proxy", []string{"--agent-id", "edge"}, 5, []string{"credentials  fail"}},
	} {
		file := filepath.Join(t.TempDir(), "token")
		token := issuer.Sign(t, issuer.Claims(time.Now(), "postern", map[string]any{"sub": tt.sub}))
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr lockedBuffer
		w := command.World{
			Args:  append([]string{"doctor", "--connect-url", url, "--ca-file", info.CAFile, "--workload-token-file", file}, tt.args...),
			Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Env: config.System(),
		}
		if code := command.Execute(t.Context(), w, cli.New(w)); code != tt.code {
			t.Errorf("%v of %s: exit code %d, want %d: %s", tt.args, tt.sub, code, tt.code, stderr.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%v of %s: it does not say %q:\n%s", tt.args, tt.sub, want, stdout.String())
			}
		}
		if strings.Contains(stdout.String()+stderr.String(), token) {
			t.Errorf("%v of %s: it shows the token", tt.args, tt.sub)
		}
	}
}

// administrator returns a client with the token of a hub's administrator.
func administrator(url string, info hub.Info) (*api.Client, error) {
	d, err := uplink.New(uplink.Config{ConnectURL: url, CAFile: info.CAFile, Getenv: func(string) string { return "" }})
	if err != nil {
		return nil, err
	}
	secret, _, err := (&enroll.RobotToken{File: info.AdminTokenFile}).SubjectToken(context.Background())
	return &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient(), Token: secret}, err
}

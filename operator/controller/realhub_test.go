package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/operator/api/v1alpha1"
	"postern.dev/postern/operator/presence"
	"postern.dev/postern/operator/servingcert"
)

// program is Postern itself, built once, with a hub of its own.
type program struct {
	*testing.T
	path, dir, address string
	front              string   // of the hub's own proxy, if it has one
	more               []string // of the hub's arguments
	hub                *exec.Cmd
}

// startProgram builds the program and starts its hub. With a file of credentials the hub has a proxy.
func startProgram(t *testing.T, credentials string) *program {
	t.Helper()
	p := &program{T: t, dir: t.TempDir()}
	p.path = filepath.Join(p.dir, "postern")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", p.path, "./cmd/postern")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p.address = testnet.FreeAddr(t)
	if credentials != "" {
		p.front = testnet.FreeAddr(t)
		p.more = []string{"--http", p.front, "--credentials-file", credentials}
	}
	p.startHub()
	return p
}

// start runs the program until the test ends or it is stopped.
func (p *program) start(args ...string) *exec.Cmd {
	p.Helper()
	cmd := exec.Command(p.path, args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &log, &log, []string{"HOME=" + p.dir}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() {
		stop(cmd)
		if p.Failed() {
			p.Logf("%v\n%s", args, log.String())
		}
	})
	return cmd
}

// stop ends a program as a power cut does.
func stop(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func (p *program) startHub() {
	p.Helper()
	p.hub = p.start(append([]string{"hub", "--data", filepath.Join(p.dir, "hub"), "--listen", p.address}, p.more...)...)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := p.run("org", "list"); err == nil {
			return
		} else if time.Now().After(deadline) {
			p.Fatal(err)
		}
	}
}

// run runs a command of the hub's administrator.
func (p *program) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(p.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env = []string{
		"HOME=" + p.dir, "POSTERN_HUB=https://" + p.address,
		"POSTERN_TOKEN_FILE=" + filepath.Join(p.dir, "hub", "admin.token"), "POSTERN_CA_FILE=" + filepath.Join(p.dir, "hub", "ca.crt"),
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return string(out), nil
}

func (p *program) must(args ...string) string {
	p.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.Fatal(err)
	}
	return out
}

// until settles until a Proxy tells what is wanted: the hub notices by itself, in its time.
func (b *bench) until(phase v1alpha1.Phase, reason string, message ...string) *v1alpha1.Proxy {
	b.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		p := b.settle()
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		good := c != nil && p.Status.Phase == phase && c.Reason == reason
		for _, m := range message {
			good = good && strings.Contains(c.Message, m)
		}
		if good {
			return p
		}
		if time.Now().After(deadline) {
			b.Fatalf("phase %s, condition %+v\nwant %s, %s, %q", p.Status.Phase, c, phase, reason, message)
		}
	}
}

// TestARealHub follows a Proxy at a real hub with a real agent, through what goes wrong between them.
func TestARealHub(t *testing.T) {
	t.Parallel()
	p := startProgram(t, "")
	ca, err := os.ReadFile(filepath.Join(p.dir, "hub", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	hubs := presence.New(nil)
	t.Cleanup(hubs.Close)
	where := &v1alpha1.Hub{ConnectURL: "tls://" + p.address, CABundle: string(ca), Organization: "default"}
	b := newBench(t, func(p *v1alpha1.Proxy) { p.Spec.AgentID, p.Spec.Hub = "office", where })
	b.r.Hubs = hubs

	token := filepath.Join(p.dir, "token.json")
	p.must("robot", "create", "machines")
	p.must("robot", "token", "create", "machines", "first", "-f", token)
	text, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	b.secret(string(text))
	b.until(v1alpha1.PhaseWaitingForProxy, ReasonAgentNotConnected, "office", "organization default")
	agent := func() *exec.Cmd {
		return p.start("agent", "--connect-url", "tls://"+p.address, "--ca-file", filepath.Join(p.dir, "hub", "ca.crt"),
			"--organization", "default", "--agent-id", "office", "--token-file", token, "--allow", "tcp:127.0.0.1:80")
	}
	first := agent()
	b.until(v1alpha1.PhaseWaitingForProxy, ReasonProxyNotReady)
	b.ready(1)
	b.until(v1alpha1.PhaseConnected, ReasonConnected)
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		s := b.settle().Status
		if len(s.Replicas) == 1 && s.Replicas[0].Name != "" && s.Replicas[0].Version != "" && s.Replicas[0].RoundTripTime != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("replicas %+v", s.Replicas)
		}
	}

	stop(first)
	b.until(v1alpha1.PhaseDisconnected, ReasonAgentNotConnected)
	agent()
	b.until(v1alpha1.PhaseConnected, ReasonConnected)
	p.must("agent", "revoke", "office")
	b.until(v1alpha1.PhaseDisconnected, ReasonAgentRevoked, "postern agent restore office")
	p.must("agent", "restore", "office")
	b.until(v1alpha1.PhaseConnected, ReasonConnected)

	// The way to the hub.
	change := func(f func(*v1alpha1.Hub)) {
		t.Helper()
		q := b.settle()
		q.Spec.Hub = where.DeepCopy()
		f(q.Spec.Hub)
		if err := b.c.Update(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	other, err := servingcert.Next(time.Now(), servingcert.Material{}, nil, []string{"x"})
	if err != nil {
		t.Fatal(err)
	}
	b.now = b.now.Add(time.Hour)
	change(func(h *v1alpha1.Hub) { h.CABundle = string(other.Authorities) })
	b.until(v1alpha1.PhaseConnected, ReasonHubUnreachable, "certificate")
	change(func(h *v1alpha1.Hub) { h.ConnectURL = "tls://" + oldTLS(t, other) })
	b.until(v1alpha1.PhaseConnected, ReasonHubUnreachable, "TLS")
	change(func(h *v1alpha1.Hub) { h.Organization = "nobody" })
	b.until(v1alpha1.PhaseConnected, ReasonTokenRefused, "Secret robot-token", `ask for organization "default"`)
	b.now = b.now.Add(grace + time.Second)
	p.must("org", "create", "other")
	change(func(h *v1alpha1.Hub) { h.Organization = "other" })
	b.until(v1alpha1.PhaseDisconnected, ReasonTokenRefused, "robot")
	change(func(*v1alpha1.Hub) {})
	b.until(v1alpha1.PhaseConnected, ReasonConnected)

	stop(p.hub)
	b.until(v1alpha1.PhaseConnected, ReasonHubUnreachable, "refused")
	b.now = b.now.Add(grace + time.Second)
	b.until(v1alpha1.PhaseDisconnected, ReasonHubUnreachable, "Streams that run go on")
	p.startHub()
	b.until(v1alpha1.PhaseConnected, ReasonConnected)
	p.must("robot", "token", "delete", "machines", "first")
	b.until(v1alpha1.PhaseConnected, ReasonTokenRefused, "postern robot token create")
	b.now = b.now.Add(grace + time.Second)
	b.until(v1alpha1.PhaseDisconnected, ReasonTokenRefused)
}

// oldTLS returns the address of a server that knows no TLS 1.3.
func oldTLS(t *testing.T, m servingcert.Material) string {
	t.Helper()
	pair, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake() // it fails
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

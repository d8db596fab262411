package e2e_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// person is somebody at a shell, with a configuration directory of her own.
type person struct {
	t    *testing.T
	hub  *harness.Hub
	idp  *harness.IDP
	name string
	dir  string
}

func (p *person) env() []string { return []string{"POSTERN_CONFIG_DIR=" + p.dir} }

// run runs a command that has to succeed.
func (p *person) run(args ...string) string {
	p.t.Helper()
	stdout, stderr, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("%s: postern %s: %v\n%s%s", p.name, strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout + stderr
}

func (p *person) try(args ...string) (stdout, stderr string, err error) {
	p.t.Helper()
	return harness.Try(p.t, 30*time.Second, p.env(), p.hub.Programs.Postern, args...)
}

// login signs in with a browser, or with a device code.
func (p *person) login(device bool) string {
	p.t.Helper()
	way := "--no-browser"
	pattern := regexp.MustCompile(`\n  (http://\S+/auth\?\S+)\n()`)
	if device {
		way = "--device"
		pattern = regexp.MustCompile(`(http://\S+/device)\nand enter the code:\n  (\S+)\n`)
	}
	c := harness.Start(p.t, harness.Spec{
		Name: "login of " + p.name, Path: p.hub.Programs.Postern, Env: p.env(), StopsBadly: true,
		Args: []string{"login", "https://" + p.hub.Addr, "--ca-file", p.hub.CA(), way},
	})
	var told []string
	harness.Eventually(p.t, 30*time.Second, "the program tells what to open", func() error {
		if told = pattern.FindStringSubmatch(c.Log()); told == nil {
			if !c.Running() {
				return harness.Permanent(fmt.Errorf("it ended:\n%s", c.Log()))
			}
			return fmt.Errorf("it tells:\n%s", c.Log())
		}
		return nil
	})
	page := p.idp.Browse(p.t, told[1], p.name, told[2])
	if !device && !strings.Contains(page, "Signed in") {
		p.t.Errorf("the last page: %s", page)
	}
	_ = c.Wait(30 * time.Second) // its exit code is the caller's to look at
	return c.Log()
}

// TestSignIn signs people in with a real identity provider: by browser and by device
// code. Groups give roles, roles permissions; sessions are renewed, end, and are
// revoked under a live stream.
func TestSignIn(t *testing.T) {
	deadline(t)
	idp := harness.StartIDP(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{Args: []string{
		"--oidc-issuer-url", idp.Issuer, "--oidc-client-id", "postern", "--oidc-admin-group", "platform", "--session-ttl", "1m",
	}})
	claims := func(name string, groups ...string) map[string]any {
		return map[string]any{"email": name + "@example.org", "email_verified": true, "groups": groups}
	}
	idp.Person(t, "ann", claims("ann", "sre"))
	idp.Person(t, "root", claims("root", "platform"))
	newPerson := func(name string) *person {
		return &person{t: t, hub: hub, idp: idp, name: name, dir: filepath.Join(t.TempDir(), name)}
	}
	ann, root := newPerson("ann"), newPerson("root")

	if log := ann.login(false); !strings.Contains(log, "Signed in as ann@example.org") || !strings.Contains(log, "no role in any organization yet") {
		t.Fatalf("login:\n%s", log)
	}
	if info, err := os.Stat(filepath.Join(ann.dir, "tokens.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("tokens: %v, %v", info.Mode(), err)
	}
	if log := root.login(true); !strings.Contains(log, "Signed in as root@example.org") {
		t.Fatalf("login with a device code:\n%s", log)
	}
	if out := root.run("whoami"); !strings.Contains(out, "the hub and all organizations") {
		t.Errorf("root: %s", out)
	}

	// A group's role: allowed to look, and not to change.
	if _, stderr, err := ann.try("robot", "list"); err == nil || !strings.Contains(stderr, "permission to read") {
		t.Errorf("without a role: %v, %s", err, stderr)
	}
	root.run("role", "grant", "viewer", "--to", "group:sre")
	ann.run("robot", "list")
	if _, stderr, err := ann.try("robot", "create", "mine"); err == nil || !strings.Contains(stderr, "permission to administer") {
		t.Errorf("viewer: %v, %s", err, stderr)
	}
	if _, stderr, err := ann.try("user", "list"); err == nil || !strings.Contains(stderr, "administer the hub") {
		t.Errorf("viewer: %v, %s", err, stderr)
	}

	kubePlugin(t, hub, ann)

	// Two processes renew at once, with a refresh token that is good once, after
	// the provider changed its key.
	idp.Rotate(t)
	age(t, ann.dir)
	type result struct {
		stderr string
		err    error
	}
	results := make(chan result, 2)
	for range 2 {
		go func() {
			_, stderr, err := harness.Try(t, 30*time.Second, ann.env(), programs.Postern, "whoami")
			results <- result{stderr, err}
		}()
	}
	for range 2 {
		if r := <-results; r.err != nil {
			t.Errorf("renewed: %v\n%s", r.err, r.stderr)
		}
	}
	if n := strings.Count(hub.Log(), `"renewed":true`); n != 1 {
		t.Errorf("the session was renewed %d times; want once", n)
	}

	forwardAndRevoke(t, hub, ann, root)

	// Somebody who left: the provider says so at the next renewal.
	idp.Person(t, "bob", claims("bob", "sre"))
	bob := newPerson("bob")
	bob.login(true)
	bob.run("whoami")
	idp.Person(t, "bob", map[string]any{"gone": true})
	age(t, bob.dir)
	age(t, bob.dir)
	for _, command := range [][]string{{"whoami"}, {"credential", "kubernetes"}} {
		if _, stderr, err := bob.try(command...); err == nil || !strings.Contains(stderr, "postern login") {
			t.Errorf("%s of somebody who left: %v, %s", command, err, stderr)
		}
	}

	// The way in for emergencies is switched off, and on again.
	root.run("admin-token", "disable")
	if _, stderr, err := hub.TryAdmin(t, "robot", "list"); err == nil {
		t.Errorf("with the administrator's token, which is off: %s", stderr)
	}
	root.run("logout")
	if _, stderr, err := root.try("whoami"); err == nil || !strings.Contains(stderr, "not signed in") {
		t.Errorf("signed out: %v, %s", err, stderr)
	}
	if err := hub.Stop(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := harness.Try(t, 30*time.Second, nil, programs.Postern, "hub", "admin-token", "enable", "--data", hub.Data); err != nil {
		t.Fatalf("enable: %v\n%s", err, stderr)
	}
	hub.Start(t)
	hub.Admin(t, "robot", "list")
}

// age makes the session of a configuration directory look old, so that the program
// renews it.
func age(t *testing.T, dir string) {
	t.Helper()
	file := filepath.Join(dir, "tokens.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for _, tokens := range all {
		tokens["issued"] = time.Now().Add(-2 * time.Hour)
		tokens["expires"] = time.Now().Add(-time.Hour)
	}
	if b, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// forwardAndRevoke has somebody forward a port, and revokes that user under a live
// connection.
func forwardAndRevoke(t *testing.T, hub *harness.Hub, ann, root *person) {
	t.Helper()
	echo := harness.Serve(t, harness.Echo)
	hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{echo})})
	root.run("access", "grant", "--to", "user:ann@example.org", "--agent", "edge", "--target", "tcp:"+echo)
	addr := harness.FreeAddr(t)
	forward := harness.Start(t, harness.Spec{
		Name: "ann's forward", Path: programs.Postern, Env: ann.env(), StopsBadly: true,
		Args: []string{"forward", "edge", "tcp:" + echo, "--listen", addr},
	})
	harness.WaitTCP(t, addr, forward, 30*time.Second)
	harness.Eventually(t, 30*time.Second, "streams open", func() error { return harness.PingEcho(addr, 5*time.Second) })
	if stdout, stderr, err := ann.try("doctor", "--agent-id", "edge", "--target", "tcp:"+echo); err != nil {
		t.Errorf("the doctor, for somebody who is signed in: %v\n%s%s", err, stdout, stderr)
	}
	live, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if _, err := live.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	_ = live.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := live.Read(buf); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	root.run("user", "revoke", "ann@example.org")
	_ = live.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := live.Read(buf); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection of a revoked user: %v; want an end", err)
	}
	took := time.Since(begin)
	t.Logf("the connection of a revoked user was cut after %v", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	if _, stderr, err := ann.try("whoami"); err == nil || !strings.Contains(stderr, "postern login") {
		t.Errorf("revoked: %v, %s", err, stderr)
	}
	if log := ann.login(false); !strings.Contains(log, "was revoked at this hub") {
		t.Errorf("revoked, and again:\n%s", log)
	}
	root.run("user", "allow", "ann@example.org")
	if log := ann.login(false); !strings.Contains(log, "Signed in as ann@example.org") {
		t.Errorf("allowed again:\n%s", log)
	}
}

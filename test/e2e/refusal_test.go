package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestProxyErrors looks at what a client is told when a target cannot be
// reached: the status, the leg that failed, and the Proxy-Status field.
func TestProxyErrors(t *testing.T) {
	t.Parallel()
	curl := harness.Need(t, "curl", "curl")
	echo := harness.Serve(t, harness.Echo)
	refused, hole := harness.FreeAddr(t), harness.BlackHole(t)
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	hub.StartAgent(t, harness.PartySpec{Allow: append(rules([]string{echo, refused, hole}), "tcp:*.invalid:80")})
	proxy := hub.StartProxy(t, harness.PartySpec{})

	for name, tt := range map[string]struct{ proxy, target, status, leg, token string }{
		"target not allowed":       {"", "127.0.0.1:1", "403", "policy", "destination_ip_prohibited|http_request_denied|connection_refused"},
		"metadata address":         {"", "169.254.169.254:80", "403", "policy", ""},
		"name that does not exist": {"", "no-such-host.invalid:80", "502", "dns", "dns_error"},
		"refused target":           {"", refused, "502", "tcp", "connection_refused"},
		"silent target":            {"", hole, "504", "tcp", "connection_timeout"},
		"no such agent":            {"nobody:@", echo, "503", "agent", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, form := range []string{"CONNECT", "absolute form"} {
				args := []string{"-sS", "-i", "--max-time", "40", "-x", "http://" + tt.proxy + proxy.HTTP}
				if form == "CONNECT" {
					args = append(args, "--proxytunnel")
				}
				stdout, stderr, _ := harness.Try(t, time.Minute, nil, curl, append(args, "http://"+tt.target+"/")...)
				if !strings.HasPrefix(stdout, "HTTP/1.1 "+tt.status) {
					t.Errorf("%s: want status %s, got %s\n%s", form, tt.status, stdout, stderr)
				}
				lower := strings.ToLower(stdout)
				if !strings.Contains(lower, "proxy-status: ") {
					t.Errorf("%s: no Proxy-Status field in\n%s", form, stdout)
				}
				// curl prints the body of a refused CONNECT not at all.
				if form != "CONNECT" && !strings.Contains(lower, tt.leg) {
					t.Errorf("%s: the body does not name the leg %q:\n%s", form, tt.leg, stdout)
				}
			}
		})
	}
}

// TestNotAProxyRequest sends a proxy what is no request for one.
func TestNotAProxyRequest(t *testing.T) {
	echo := harness.Serve(t, harness.Echo)
	s, forwards := newSetup(t, echo)
	for name, tt := range map[string]struct{ addr, send, want string }{
		"origin form":         {s.proxy.HTTP, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
		"not HTTP":            {s.proxy.HTTP, "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "HTTP/1.1 400"},
		"bad CONNECT":         {s.proxy.HTTP, "CONNECT nowhere HTTP/1.1\r\nHost: nowhere\r\n\r\n", "HTTP/1.1 400"},
		"bad port":            {s.proxy.HTTP, "CONNECT host:99999 HTTP/1.1\r\nHost: host:99999\r\n\r\n", "HTTP/1.1 400"},
		"header too long":     {s.proxy.HTTP, "CONNECT a:1 HTTP/1.1\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", "HTTP/1.1 4"},
		"SOCKS4":              {s.proxy.SOCKS5, "\x04\x01\x00\x50\x7f\x00\x00\x01\x00", ""},
		"SOCKS5 BIND":         {s.proxy.SOCKS5, "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00\x05\x07"},
		"SOCKS5 bad address":  {s.proxy.SOCKS5, "\x05\x01\x00\x05\x01\x00\x09\x7f\x00\x00\x01\x00\x50", "\x05\x00\x05\x08"},
		"SOCKS5 no method":    {s.proxy.SOCKS5, "\x05\x01\x77", "\x05\xff"},
		"HTTP to SOCKS5 port": {s.proxy.SOCKS5, "GET / HTTP/1.1\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn := harness.Dial(t, tt.addr)
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			go func() {
				_, _ = conn.Write([]byte(tt.send))
				_ = conn.CloseWrite()
			}()
			answer := make([]byte, max(len(tt.want), 3))
			n, _ := io.ReadFull(conn, answer) // it may say less and hang up
			if !strings.HasPrefix(string(answer[:n]), tt.want) || (tt.want == "" && n > 0 && answer[0] == 5 && n > 2) {
				t.Errorf("answer %q, want %q", answer[:n], tt.want)
			}
		})
	}
	if err := harness.PingEcho(forwards[0], 10*time.Second); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// TestAgentIsRefused starts agents with something wrong; each has to end with a
// message that says what, for the person who can mend it.
func TestAgentIsRefused(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	other := harness.StartHub(t, programs, harness.HubSpec{})
	good := hub.Token(t, "default")
	foreign := other.Token(t, "default")
	hub.Token(t, "acme")

	write := func(name, text string) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	token := harness.ReadToken(t, good)
	cut := token
	cut.Token = cut.Token[:len(cut.Token)-20]
	truncated, err := json.Marshal(cut)
	if err != nil {
		t.Fatal(err)
	}
	revoked := filepath.Join(t.TempDir(), "revoked.json")
	hub.Admin(t, "robot", "token", "create", "e2e", "gone", "-f", revoked)
	hub.Admin(t, "robot", "token", "delete", "e2e", "gone")

	for name, tt := range map[string]struct {
		spec harness.PartySpec
		want []string // words, one of which the last lines have to contain
	}{
		"wrong token":            {harness.PartySpec{Token: write("t", "not-a-token")}, []string{"token"}},
		"truncated token":        {harness.PartySpec{Token: write("t", string(truncated))}, []string{"token"}},
		"token of another hub":   {harness.PartySpec{Token: foreign}, []string{"token"}},
		"revoked token":          {harness.PartySpec{Token: revoked}, []string{"revoked", "deleted", "token"}},
		"no token file":          {harness.PartySpec{Token: "/no/such/file"}, []string{"/no/such/file"}},
		"empty token file":       {harness.PartySpec{Token: write("t", "")}, []string{"empty", "token"}},
		"wrong organization":     {harness.PartySpec{Organization: "acme", Token: good}, []string{"organization", "acme"}},
		"unknown organization":   {harness.PartySpec{Organization: "nowhere", Token: good}, []string{"organization", "nowhere"}},
		"CA of another hub":      {harness.PartySpec{Args: []string{"--ca-file", other.CA()}}, []string{"certificate", "CA"}},
		"wrong pin":              {harness.PartySpec{Args: []string{"--ca-pin", "sha256:" + strings.Repeat("ab", 32)}}, []string{"pin"}},
		"rule that is none":      {harness.PartySpec{Allow: []string{"everything"}}, []string{"everything", "rule"}},
		"agent ID that is none":  {harness.PartySpec{AgentID: "Not An ID"}, []string{"agent"}},
		"connect URL of no kind": {harness.PartySpec{Args: []string{"--connect-url", "ftp://x"}}, []string{"connect-url", "tls://"}},
		"unknown flag":           {harness.PartySpec{Args: []string{"--no-such-flag"}}, []string{"no-such-flag"}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.spec.NoWait = true
			agent := hub.StartAgent(t, tt.spec)
			if err := agent.Wait(20 * time.Second); err == nil {
				t.Fatal("the agent ended as if all was well")
			} else if agent.Running() {
				t.Fatalf("%v; its log:\n%s", err, agent.Log())
			}
			lines := strings.Split(strings.TrimSpace(agent.Log()), "\n")
			end := strings.Join(lines[max(0, len(lines)-4):], "\n")
			for _, word := range tt.want {
				if strings.Contains(strings.ToLower(end), strings.ToLower(word)) {
					checkLogs(t, hub, agent.Process, hub.Process)
					return
				}
			}
			t.Errorf("the agent's last lines name none of %q:\n%s", tt.want, end)
		})
	}
}

// TestTokenExpires uses a token until it is too old. Clocks may differ by a
// minute, so it is good for that much longer than it says.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	hub.Token(t, "default")
	token := filepath.Join(t.TempDir(), "short.json")
	hub.Admin(t, "robot", "token", "create", "e2e", "short", "-f", token, "--expires-in", "1s")
	harness.Eventually(t, 90*time.Second, "the token is refused", func() error {
		agent := hub.StartAgent(t, harness.PartySpec{Token: token, NoWait: true})
		if agent.Wait(3*time.Second) == nil {
			return harness.Permanent(errors.New("the agent ended as if all was well"))
		}
		if agent.Running() {
			_ = agent.Stop(10 * time.Second)
			return errors.New("it is still good")
		}
		if !strings.Contains(agent.Log(), "expired") {
			return harness.Permanent(fmt.Errorf("the agent does not say why:\n%s", agent.Log()))
		}
		return nil
	})
}

// TestConfigurationIsStrict gives an agent a file with a key that it does not
// know, and expects to be told the line.
func TestConfigurationIsStrict(t *testing.T) {
	deadline(t)
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte("connectUrl: tls://127.0.0.1\norganization: default\nalow: [kubernetes]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := harness.Try(t, 20*time.Second, nil, programs.Postern, "agent", "--config", file)
	if err == nil {
		t.Fatal("an unknown key was accepted")
	}
	if out := stdout + stderr; !strings.Contains(out, "alow") || !strings.Contains(out, "3") {
		t.Errorf("the message does not name the key and its line:\n%s", out)
	}
}

// TestProxyNeedsCredentials looks that a proxy on an address that others can
// reach does not start without credentials.
func TestProxyNeedsCredentials(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	proxy := hub.StartProxy(t, harness.PartySpec{NoWait: true, Args: []string{"--http", "0.0.0.0:" + port(harness.FreeAddr(t))}})
	if err := proxy.Wait(20 * time.Second); err == nil || proxy.Running() {
		t.Fatalf("a proxy without credentials runs on all addresses: %v", err)
	}
	if !strings.Contains(proxy.Log(), "credentials") {
		t.Errorf("the message does not say what is missing:\n%s", proxy.Log())
	}
}

// TestLocalCredentials asks for a password on loopback.
func TestLocalCredentials(t *testing.T) {
	deadline(t)
	curl := harness.Need(t, "curl", "curl")
	web := harness.StartNginx(t, t.TempDir())
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{web})})
	users := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(users, []byte("edge:correct-horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := hub.StartProxy(t, harness.PartySpec{Args: []string{"--credentials-file", users}})
	for user, want := range map[string]string{"": "407", "edge:battery-staple@": "407", "edge:correct-horse@": "403"} { // nginx has no index
		got, stderr, _ := harness.Try(t, 30*time.Second, nil, curl, "-sS", "-o", "/dev/null", "-w", "%{http_code}",
			"-x", "http://"+user+proxy.HTTP, "http://"+web+"/")
		if got != want {
			t.Errorf("user %q: status %s, want %s; %s", user, got, want, stderr)
		}
	}
	if _, _, err := harness.Try(t, 30*time.Second, nil, curl, "-sS", "-x", "socks5h://"+proxy.SOCKS5, "http://"+web+"/"); err == nil {
		t.Error("SOCKS5 without credentials was served")
	}
	if strings.Contains(proxy.Log(), "correct-horse") || strings.Contains(proxy.Log(), "battery-staple") {
		t.Error("the proxy's log has a password")
	}
}

// TestOrganizationsAreApart uses the same agent ID in two organizations.
func TestOrganizationsAreApart(t *testing.T) {
	deadline(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	mine := harness.Serve(t, func(conn *net.TCPConn) { _, _ = conn.Write([]byte("mine")) })
	hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{mine})})
	args, forwards := forwardArgs(t, "edge", []string{mine})
	hub.StartProxy(t, harness.PartySpec{Organization: "acme", Args: args, NoWait: true})
	harness.Eventually(t, 20*time.Second, "the forward listens", func() error {
		conn, err := net.DialTimeout("tcp", forwards[0], time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	for range 5 {
		conn, err := net.DialTimeout("tcp", forwards[0], 10*time.Second)
		if err != nil {
			continue // it was reset at once
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		n, err := conn.Read(make([]byte, 4))
		conn.Close()
		if n > 0 || err == nil {
			t.Fatal("a proxy of one organization reached an agent of another")
		}
	}
	if out := hub.Admin(t, "agents", "--organization", "acme"); strings.Contains(out, "edge") {
		t.Errorf("one organization sees the agents of another:\n%s", out)
	}
}

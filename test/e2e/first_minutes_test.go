package e2e_test

import (
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestDev runs `postern dev` and copies the commands that it prints.
func TestDev(t *testing.T) {
	deadline(t)
	harness.Need(t, "curl", "curl")
	dev := harness.Start(t, harness.Spec{Name: "dev", Path: programs.Postern, Args: []string{"dev"}, Dir: t.TempDir()})
	dev.WaitLog(t, `(?m)^\s*(?:\$ )?(curl .+)$`, 30*time.Second)
	log := dev.Log()
	for _, program := range []string{"curl", "kubectl", "psql"} {
		if !regexp.MustCompile(`(?m)^\s*(\$ )?.*\b` + program + `\b`).MatchString(log) {
			t.Errorf("it prints no command with %s:\n%s", program, log)
		}
	}
	for _, match := range regexp.MustCompile(`(?m)^\s*(?:\$ )?(curl .+)$`).FindAllStringSubmatch(log, -1) {
		out, err := exec.CommandContext(t.Context(), "bash", "-c", match[1]+" --max-time 20 -sSf").CombinedOutput()
		if err != nil || len(out) == 0 {
			t.Errorf("%s: %v\n%s", match[1], err, out)
		}
		t.Logf("%s\n%s", match[1], out)
	}
	if err := dev.Stop(30 * time.Second); err != nil {
		t.Errorf("it did not end cleanly: %v", err)
	}
}

// TestDoctor lets the doctor look at a way that works and at ways that do not.
func TestDoctor(t *testing.T) {
	t.Parallel()
	echo := harness.Serve(t, harness.Echo)
	s, _ := newSetup(t, echo)
	silent := harness.Serve(t, harness.Hold)
	doctor := func(url, target string) (string, error) {
		stdout, stderr, err := harness.Try(t, time.Minute, nil, programs.Postern, "doctor", "--connect-url", url,
			"--organization", "default", "--agent-id", "edge", "--token-file", s.hub.Token(t, "default"),
			"--ca-file", s.hub.CA(), "--target", target)
		return stdout + stderr, err
	}
	if out, err := doctor(s.hub.URL(), "tcp:"+echo); err != nil {
		t.Errorf("a way that works: %v\n%s", err, out)
	}
	for name, tt := range map[string]struct{ url, target, want string }{
		"nobody listens":     {"tls://" + harness.FreeAddr(t), "tcp:" + echo, "tcp"},
		"not a hub":          {"tls://" + silent, "tcp:" + echo, "tls"},
		"target not allowed": {s.hub.URL(), "tcp:127.0.0.1:9", "policy"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := doctor(tt.url, tt.target)
			if err == nil {
				t.Errorf("it found nothing wrong:\n%s", out)
			}
			if !strings.Contains(strings.ToLower(out), tt.want) {
				t.Errorf("it does not name the leg %q:\n%s", tt.want, out)
			}
		})
	}
}

// TestServerSpeaksFirst looks that no byte of a target that speaks first, as
// SSH and MySQL do, comes before the proxy's own answer.
func TestServerSpeaksFirst(t *testing.T) {
	banner := harness.Serve(t, func(conn *net.TCPConn) { _, _ = conn.Write([]byte("220 ready\r\n")) })
	s, _ := newSetup(t, banner)
	for range 200 {
		conn := harness.Dial(t, s.proxy.HTTP)
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", banner)
		var all []byte
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				break
			}
		}
		head, body, found := strings.Cut(string(all), "\r\n\r\n")
		if !found || !strings.HasPrefix(head, "HTTP/1.1 200 ") || body != "220 ready\r\n" {
			t.Fatalf("the client read %q", all)
		}
		conn.Close()
	}
}

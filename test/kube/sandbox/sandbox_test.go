//go:build linux

package sandbox

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func open(t *testing.T) *Sandbox {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a sandbox needs root on Linux")
	}
	s, err := New(Config{
		Dir:      t.TempDir(),
		Init:     []string{"sh", "-c", "while :; do sleep 1000; done"},
		Hostname: "inside",
		Files:    map[string]string{"/etc/resolv.conf": "nameserver 192.0.2.53\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func run(t *testing.T, s *Sandbox, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out.String())
	}
	return out.String()
}

func TestInside(t *testing.T) {
	s := open(t)
	for _, c := range []struct {
		command []string
		want    string
	}{
		{[]string{"uname", "-n"}, "inside\n"},
		{[]string{"cat", "/etc/resolv.conf"}, "nameserver 192.0.2.53\n"},
		{[]string{"ls", "/sys/fs", "/run"}, "/run:\n"},
	} {
		if got := run(t, s, c.command...); !strings.Contains(got, c.want) {
			t.Errorf("%v printed %q, want %q", c.command, got, c.want)
		}
	}
	if got := strings.Count(run(t, s, "cat", "/proc/net/dev"), ":"); got != 1 {
		t.Errorf("there are %d network devices inside, want lo alone", got)
	}
	if got := run(t, s, "cat", "/proc/1/comm"); got != "sh\n" {
		t.Errorf("the first process inside is %q", got)
	}
	outside, err := os.ReadFile("/etc/resolv.conf")
	if err == nil && strings.Contains(string(outside), "192.0.2.53") {
		t.Error("the machine's own resolv.conf has changed")
	}
}

// TestNetworksAreApart listens inside and cannot be reached from outside.
func TestNetworksAreApart(t *testing.T) {
	s := open(t)
	var listener net.Listener
	err := s.Do(func() error {
		var err error
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := s.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatalf("from inside: %v", err)
	}
	conn.Close()
	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("a listener inside was reached from outside")
	}
}

// TestCloseEndsEverything starts a program that turns into a daemon of its own session.
func TestCloseEndsEverything(t *testing.T) {
	s := open(t)
	run(t, s, "sh", "-c", "setsid sleep 4321 >/dev/null 2>&1 &")
	s.Close()
	if out, err := exec.Command("pgrep", "-f", "^sleep 4321$").Output(); err == nil {
		t.Errorf("a daemon outlived its sandbox: %s", out)
	}
	if err := s.Start(exec.Command("true")); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
}

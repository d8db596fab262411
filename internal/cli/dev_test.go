package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/internal/cli"
	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
)

// TestDev runs the demo in this process and the commands that it prints, as far
// as their programs are installed.
func TestDev(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancel(t.Context())
	out, stdout := io.Pipe()
	var stderr lockedBuffer
	w := command.World{Args: []string{"dev", "--log-level", "info"}, Stdin: strings.NewReader(""), Stdout: stdout, Stderr: &stderr, Env: config.System()}
	done := make(chan int, 1)
	go func() {
		code := command.Execute(ctx, w, cli.New(w))
		_ = stdout.Close()
		done <- code
	}()

	var text strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			break
		}
	}
	commands := regexp.MustCompile(`(?m)^    (.+)$`).FindAllStringSubmatch(text.String(), -1)
	if len(commands) != 3 {
		cancel()
		t.Fatalf("exit code %d; it prints %d commands:\n%s%s", <-done, len(commands), text.String(), stderr.String())
	}
	// In a test the program is this test, which TestMain makes postern under that name.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	postern := filepath.Join(t.TempDir(), "postern")
	if err := os.Symlink(self, postern); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"Hello from the private network", "this-is-postern-dev", "the demo of Postern, not PostgreSQL"} {
		line := strings.ReplaceAll(commands[i][1], self, postern)
		program := []string{"curl", "kubectl", "psql"}[i]
		if _, err := exec.LookPath(program); errors.Is(err, exec.ErrNotFound) {
			t.Logf("%s is not installed; not run: %s", program, line)
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		got, err := exec.CommandContext(ctx, "sh", "-c", line).CombinedOutput()
		cancel()
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s\n%v\n%s", line, err, got)
		}
	}

	// A forward over standard input and output, to the web page and to nowhere.
	settings := regexp.MustCompile(`--config (\S+)`).FindStringSubmatch(commands[2][1])[1]
	port := regexp.MustCompile(`internal:(\d+)/`).FindStringSubmatch(commands[0][1])[1]
	for target, want := range map[string]string{"tcp:localhost:" + port: "HTTP/1.0 200 OK", "tcp:192.0.2.1:9": "no rule allows tcp:192.0.2.1:9"} {
		c := exec.CommandContext(t.Context(), postern, "forward", "--config", settings, "demo", target, "--listen", "-")
		c.Stdin = strings.NewReader("GET / HTTP/1.0\r\nHost: x\r\n\r\n")
		got, err := c.CombinedOutput()
		if (err == nil) != strings.HasPrefix(want, "HTTP") || !strings.Contains(string(got), want) {
			t.Errorf("forward to %s: %v\n%s", target, err, got)
		}
	}

	cancel()
	select {
	case code := <-done:
		if code != command.ExitOK {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "postern-dev-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if t.Failed() {
		t.Log(stderr.String())
	}
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/pki"
)

// quick is the time that an ordinary request may take on a busy machine.
const quick = 30 * time.Second

// client is kubectl, outside the private network, with one way to the cluster.
type client struct {
	name       string
	namespace  string
	kubectl    string
	kubeconfig string
	env        []string
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
	err            error
	took           time.Duration
}

// proxyVariables must not leak into a test from the machine that runs it.
func proxyVariables(kv string) bool {
	name, _, _ := strings.Cut(strings.ToUpper(kv), "=")
	return slices.Contains([]string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "KUBECONFIG"}, name)
}

func newClient(t *testing.T, kubectl, name string, config pki.Kubeconfig, env ...string) client {
	t.Helper()
	dir := t.TempDir()
	c := client{
		name:       name,
		namespace:  "via-" + name,
		kubectl:    kubectl,
		kubeconfig: filepath.Join(dir, "kubeconfig"),
		env: append(slices.DeleteFunc(os.Environ(), proxyVariables),
			append(env, "HOME="+dir, "KUBECACHEDIR="+filepath.Join(dir, "cache"))...),
	}
	config.Namespace = c.namespace
	if err := config.WriteFile(c.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return c
}

// with is the same client with more in its environment.
func (c client) with(env ...string) client {
	c.env = append(slices.Clone(c.env), env...)
	return c
}

// command is a kubectl that is not started yet. It is killed when ctx ends.
func (c client) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.kubectl, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	cmd.Env = c.env
	return cmd
}

// run runs kubectl to its end.
func (c client) run(ctx context.Context, stdin io.Reader, args ...string) result {
	cmd := c.command(ctx, args...)
	cmd.Stdin = stdin
	return finish(ctx, cmd)
}

func finish(ctx context.Context, cmd *exec.Cmd) result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.err = ctx.Err()
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	default:
		r.err = err
	}
	return r
}

// must runs kubectl and fails the test unless it succeeds.
func (c client) must(t *testing.T, args ...string) string {
	t.Helper()
	return c.feed(t, "", args...)
}

// feed is must with text on standard input.
func (c client) feed(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	r := c.run(limit(t, 2*quick), strings.NewReader(stdin), args...)
	if r.err != nil || r.code != 0 {
		t.Fatalf("kubectl %s: exit code %d, %v\n%s%s", strings.Join(args, " "), r.code, r.err, r.stdout, r.stderr)
	}
	return r.stdout
}

// stream is a command that goes on, such as logs -f, and the lines that it prints.
type stream struct {
	cmd    *exec.Cmd
	lines  chan string
	stderr bytes.Buffer
	done   chan struct{}
	err    error // read after done
}

// follow starts kubectl. The stream ends with the test at the latest.
func (c client) follow(t *testing.T, args ...string) *stream {
	t.Helper()
	return follow(t, c.command(t.Context(), args...))
}

// follow starts a command. The stream ends with the test at the latest.
func follow(t *testing.T, cmd *exec.Cmd) *stream {
	t.Helper()
	s := &stream{cmd: cmd, lines: make(chan string, 1024), done: make(chan struct{})}
	reader, writer := io.Pipe()
	s.cmd.Stdout, s.cmd.Stderr = writer, &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the command
		defer close(s.done)
		s.err = s.cmd.Wait()
		writer.Close()
	}()
	go func() { // ends when the writer is closed
		defer close(s.lines)
		splitLines(reader, s.lines)
	}()
	t.Cleanup(s.stop)
	return s
}

// splitLines sends whole lines and drops those for which no one is there.
func splitLines(r io.Reader, lines chan<- string) {
	var rest []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		for {
			line, after, found := bytes.Cut(rest, []byte("\n"))
			if !found {
				break
			}
			rest = after
			select {
			case lines <- string(line):
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// next is the next line, or a failed test.
func (s *stream) next(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-s.lines:
		if !ok {
			<-s.done
			t.Fatalf("%s ended: %v\n%s", filepath.Base(s.cmd.Path), s.err, s.stderr.String())
		}
		return line
	case <-time.After(quick):
		t.Fatalf("no line within %s", quick)
		return ""
	}
}

// wait waits for the end, which must come by itself.
func (s *stream) wait(t *testing.T, within time.Duration) (string, error) {
	t.Helper()
	select {
	case <-s.done:
		return s.stderr.String(), s.err
	case <-time.After(within):
		t.Fatalf("%s did not end within %s", filepath.Base(s.cmd.Path), within)
		return "", nil
	}
}

func (s *stream) stop() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

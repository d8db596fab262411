//go:build linux

package e2e_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/test/kube/cluster"
)

// listener is a pod whose program waits for its input: NAME, TTY, COMMAND.
const listener = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: ` + cluster.ToolImage + `, command: [%[3]s], stdin: true, stdinOnce: true, tty: %[2]t}
`

// testAttach attaches to programs that run already: one that prints, one that reads its input to
// the end, and one on a terminal.
func testAttach(t *testing.T, kubectl client, websockets string) {
	kubectl = kubectl.with(execEnv(websockets)...)
	echo, screen := "echo-"+websockets, "screen-"+websockets
	kubectl.feed(t, fmt.Sprintf(listener, echo, false, "linger")+"---"+fmt.Sprintf(listener, screen, true, "tty"), "apply", "-f", "-")

	ticks := kubectl.follow(t, "attach", "clock")
	var first int
	if line := ticks.next(t); !parses(line, &first) {
		t.Fatalf("attach: %q", line)
	}
	for i := range 40 {
		if line, want := ticks.next(t), fmt.Sprint("tick ", first+1+i); line != want {
			t.Fatalf("attach: %q instead of %q", line, want)
		}
	}
	ticks.stop()

	kubectl.must(t, "wait", "--for=condition=Ready", "pod/"+echo, "pod/"+screen, "--timeout=30s")
	input := strings.Repeat("one line and another\n", 20_000)
	r := kubectl.run(limit(t, quick), strings.NewReader(input), "attach", "-i", "-q", echo)
	if r.err != nil || r.code != 0 || r.stdout != input {
		t.Errorf("attach -i: %d bytes of %d came back, exit code %d, %v\n%s", len(r.stdout), len(input), r.code, r.err, r.stderr)
	}
	kubectl.must(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+echo, "--timeout=30s")

	term := openTerminal(t, kubectl.command(limit(t, quick), "attach", "-it", screen), 37, 111)
	term.write(t, "word\r")
	term.expect(t, "got word")
	term.resize(t, 51, 132)
	term.expect(t, "tty 51 rows 132 columns")
	term.write(t, "bye\r")
	if err := term.wait(t); err != nil {
		t.Errorf("attach -it ended with %v:\n%s", err, term.text())
	}
	kubectl.must(t, "delete", "pod", echo, screen, "--wait=false")
}

// parses reads the number of a line of the clock.
func parses(line string, n *int) bool {
	_, err := fmt.Sscanf(line, "tick %d", n)
	return err == nil
}

// testWait waits for what happens, for what is gone, and for what never happens.
func testWait(t *testing.T, kubectl client) {
	kubectl.must(t, "create", "configmap", "awaited")
	changed := kubectl.follow(t, "wait", "configmap/awaited", "--for=jsonpath={.data.state}=done", "--timeout=30s")
	kubectl.must(t, "patch", "configmap", "awaited", "-p", `{"data":{"state":"done"}}`)
	if line := changed.next(t); line != "configmap/awaited condition met" {
		t.Errorf("wait says %q", line)
	}
	gone := kubectl.follow(t, "wait", "configmap/awaited", "--for=delete", "--timeout=30s")
	kubectl.must(t, "delete", "configmap", "awaited")
	if stderr, err := gone.wait(t, quick); err != nil {
		t.Errorf("wait --for=delete: %v\n%s", err, stderr)
	}
	refused(t, kubectl, "timed out waiting for the condition on pods/clock", "wait", "pod/clock", "--for=condition=Never", "--timeout=1s")
}

// quietSession is an exec in which nobody says anything for long.
type quietSession struct {
	*stream
	name  string
	keys  io.WriteCloser
	since time.Time
}

// startQuiet starts sessions of exec through a middlebox that cuts silent connections.
func startQuiet(t *testing.T, m *tunnel, kubectl client, pod string) []*quietSession {
	t.Helper()
	way := link(t, testnet.Config{Target: m.addr, Idle: idle})
	t.Cleanup(func() {
		if n := way.Idled(); n != 0 {
			t.Errorf("%d of %d connections were silent for %s and cut", n, way.Accepted(), idle)
		}
	})
	var all []*quietSession
	for name, websockets := range map[string]string{"websocket": "true", "spdy": "false"} {
		cmd := kubectl.with(execEnv(websockets)...).command(t.Context(), "exec", "-i", "-n", "default", pod, "--server", "https://"+way.Addr()+"/"+gatewayAgent, "--", "cat")
		keys, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		s := &quietSession{stream: follow(t, cmd), name: name, keys: keys}
		s.say(t, "one")
		all = append(all, s)
	}
	return all
}

// say sends a line and wants it back.
func (s *quietSession) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(s.keys, line+"\n"); err != nil {
		t.Fatalf("exec by %s: %v", s.name, err)
	}
	if got := s.next(t); got != line {
		t.Errorf("exec by %s: %q instead of %q", s.name, got, line)
	}
	s.since = time.Now()
}

// end ends the session, no sooner than it has been silent for long enough.
func (s *quietSession) end(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(time.Until(s.since.Add(idle + idle/4))):
	case <-s.done:
		t.Fatalf("exec by %s ended: %v\n%s", s.name, s.err, s.stderr.String())
	}
	t.Logf("exec by %s: silent for %s", s.name, time.Since(s.since).Round(time.Second))
	s.say(t, "two")
	s.keys.Close()
	if stderr, err := s.wait(t, quick); err != nil {
		t.Errorf("exec by %s: %v\n%s", s.name, err, stderr)
	}
}

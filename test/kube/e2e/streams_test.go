//go:build linux

package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// copySize is the size of the file that kubectl cp carries each way, in MiB, unless
// POSTERN_COPY_SIZE says another.
const copySize = 40

// copyBytes is the size of that file, in bytes.
func copyBytes(t *testing.T) int64 {
	t.Helper()
	text := os.Getenv("POSTERN_COPY_SIZE")
	if text == "" {
		return copySize << 20
	}
	size, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		t.Fatalf("POSTERN_COPY_SIZE: %v", err)
	}
	return size << 20
}

// execEnv chooses between WebSocket and SPDY for exec, cp and port-forward.
func execEnv(websockets string) []string {
	return []string{"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=" + websockets, "KUBECTL_PORT_FORWARD_WEBSOCKETS=" + websockets}
}

// noFallback fails the test if kubectl, asked for WebSocket, went back to SPDY, which it does
// without a word when the upgrade fails.
func noFallback(t *testing.T, stderr string) {
	t.Helper()
	if strings.Contains(strings.ToLower(stderr), "fallback") {
		t.Errorf("kubectl fell back to SPDY:\n%s", stderr)
	}
}

func testExec(t *testing.T, kubectl client, websockets string) {
	kubectl = kubectl.with(execEnv(websockets)...)
	r := kubectl.run(limit(t, quick), nil, "-v=4", "exec", "clock", "--", "echo", "hello", "from", "inside")
	if r.stdout != "hello from inside\n" || r.code != 0 || r.err != nil {
		t.Errorf("exec echo: %q, exit code %d, %v\n%s", r.stdout, r.code, r.err, r.stderr)
	}
	noFallback(t, r.stderr)
	for _, code := range []int{0, 7, 255} {
		if r := kubectl.run(limit(t, quick), nil, "exec", "clock", "--", "exit", fmt.Sprint(code)); r.code != code || r.err != nil {
			t.Errorf("exec exit %d: exit code %d, %v\n%s", code, r.code, r.err, r.stderr)
		}
	}
	// The end of standard input must reach cat, and all of the output must come back after it.
	input := make([]byte, 3<<20)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(input); err != nil {
		t.Fatal(err)
	}
	r = kubectl.run(limit(t, quick), bytes.NewReader(input), "exec", "-i", "clock", "--", "cat")
	if r.err != nil || r.code != 0 || r.stdout != string(input) {
		t.Errorf("exec -i cat: %d bytes of %d came back, exit code %d, %v\n%s", len(r.stdout), len(input), r.code, r.err, r.stderr)
	}
}

func testTerminal(t *testing.T, kubectl client, websockets string) {
	kubectl = kubectl.with(execEnv(websockets)...)
	term := openTerminal(t, kubectl.command(limit(t, quick), "exec", "-it", "clock", "--", "tty"), 37, 111)
	term.expect(t, "tty 37 rows 111 columns")
	term.write(t, "word\r")
	term.expect(t, "got word")
	term.resize(t, 51, 132)
	term.expect(t, "tty 51 rows 132 columns")
	term.write(t, "bye\r")
	if err := term.wait(t); err != nil {
		t.Errorf("exec -it ended with %v:\n%s", err, term.text())
	}
}

func testPortForward(t *testing.T, kubectl client, websockets string) {
	forward := kubectl.with(execEnv(websockets)...).follow(t, "port-forward", "deployment/web", ":8080")
	line := forward.next(t)
	address, found := strings.CutPrefix(line, "Forwarding from ")
	if !found {
		t.Fatalf("port-forward: %q", line)
	}
	address, _, _ = strings.Cut(address, " ")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			transport := &http.Transport{DisableKeepAlives: true}
			response, err := (&http.Client{Timeout: quick, Transport: transport}).Get(fmt.Sprintf("http://%s/%d", address, i))
			if err != nil {
				t.Errorf("port-forward: %v", err)
				return
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || !strings.Contains(string(body), fmt.Sprintf("at /%d", i)) {
				t.Errorf("port-forward: %q, %v", body, err)
			}
		})
	}
	wg.Wait()
}

func testCopy(t *testing.T, kubectl client, websockets string) {
	kubectl = kubectl.with(execEnv(websockets)...)
	local, back := filepath.Join(t.TempDir(), "file"), filepath.Join(t.TempDir(), "back")
	size := copyBytes(t)
	want := makeFile(t, local, size)

	up := kubectl.run(limit(t, 5*time.Minute), nil, "cp", local, "clock:/tmp/copy")
	if up.err != nil || up.code != 0 {
		t.Fatalf("cp to the pod: exit code %d, %v\n%s", up.code, up.err, up.stderr)
	}
	if got := strings.TrimSpace(kubectl.must(t, "exec", "clock", "--", "sha256", "/tmp/copy")); got != want {
		t.Errorf("cp to the pod: digest %s, want %s", got, want)
	}
	down := kubectl.run(limit(t, 5*time.Minute), nil, "cp", "clock:/tmp/copy", back)
	if down.err != nil || down.code != 0 {
		t.Fatalf("cp from the pod: exit code %d, %v\n%s", down.code, down.err, down.stderr)
	}
	if got := digest(t, back); got != want {
		t.Errorf("cp from the pod: digest %s, want %s", got, want)
	}
	rate := func(r result) float64 { return float64(size) / 1e6 / r.took.Seconds() }
	t.Logf("cp of %d MiB: %.0f MB/s up, %.0f MB/s down", size>>20, rate(up), rate(down))
	kubectl.must(t, "exec", "clock", "--", "gen", "0", "/tmp/copy") // a pod's files are in memory, or on a small disk
}

// testParallel runs many commands at once, each of which must get its own bytes back.
func testParallel(t *testing.T, kubectl client) {
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			input := make([]byte, 1<<20)
			if _, err := rand.NewChaCha8([32]byte{3, byte(i)}).Read(input); err != nil {
				t.Error(err)
				return
			}
			r := kubectl.run(limit(t, 2*quick), bytes.NewReader(input), "exec", "-i", "clock", "--", "cat")
			if r.err != nil || r.code != 0 || r.stdout != string(input) {
				t.Errorf("exec %d: %d bytes of %d came back, equal: %t, exit code %d, %v\n%s",
					i, len(r.stdout), len(input), r.stdout == string(input), r.code, r.err, r.stderr)
			}
		})
	}
	wg.Wait()
}

// makeFile writes a file of random bytes and returns its digest.
func makeFile(t *testing.T, name string, size int64) string {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{2}), size); err != nil {
		t.Fatal(err)
	}
	return digest(t, name)
}

func digest(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

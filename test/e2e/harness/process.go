package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Spec says how to start a process.
type Spec struct {
	Name string // for messages
	Path string // the program
	Args []string
	Env  []string // besides BaseEnv
	Dir  string
	User *syscall.Credential // nil for the user of the test

	// StopsBadly says that the end of the process at the end of the test need
	// be neither soon nor clean.
	StopsBadly bool
}

// Process is a running program. It is ended when the test ends.
type Process struct {
	Name string

	cmd  *exec.Cmd
	log  logBuffer
	done chan struct{}
	err  error // after done
}

// BaseEnv returns the environment for programs under test: nothing of the
// machine's own proxies, tokens or configuration leaks into them.
func BaseEnv(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LANG=C", "TZ=UTC"}
}

// stopTimeout is how long a process may take to end cleanly: streams may go on
// for 25 seconds by default.
const stopTimeout = 35 * time.Second

// Start starts a process and arranges for its end.
func Start(t testing.TB, spec Spec) *Process {
	t.Helper()
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env = append(BaseEnv(t.TempDir()), spec.Env...)
	cmd.Dir = spec.Dir
	// The kernel ends the process if the test dies without a chance to.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: spec.User}
	p := &Process{Name: spec.Name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	// A child that the process leaves behind must not keep Wait waiting.
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", spec.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		if p.Running() {
			begin := time.Now()
			if err := p.Stop(stopTimeout); err != nil && !spec.StopsBadly {
				t.Errorf("asked to end: %v (after %v)", err, time.Since(begin).Round(time.Millisecond))
			}
			p.Kill()
		}
		if t.Failed() {
			t.Logf("log of %s (pid %d):\n%s", p.Name, p.PID(), p.log.tail(60))
		}
	})
	return p
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running says whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill ends the process as a crash would, and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// Stop asks the process to end and waits for it. It returns an error if the
// process did not end in time, or not with exit code 0.
func (p *Process) Stop(timeout time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	return p.Wait(timeout)
}

// Wait waits for the end of the process and returns how it ended.
func (p *Process) Wait(timeout time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		return fmt.Errorf("%s did not end within %v", p.Name, timeout)
	}
}

// ExitCode returns the exit code of an ended process, -1 after a signal.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Log returns what the process has printed.
func (p *Process) Log() string { return p.log.String() }

// WaitLog waits until the process has printed a match of the pattern and
// returns the match's groups.
func (p *Process) WaitLog(t testing.TB, pattern string, timeout time.Duration) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var match []string
	Eventually(t, timeout, p.Name+" prints "+pattern, func() error {
		if match = re.FindStringSubmatch(p.Log()); match != nil {
			return nil
		}
		if !p.Running() {
			return Permanent(fmt.Errorf("it ended: %w", p.err))
		}
		return errors.New("not yet")
	})
	return match
}

// FDs returns how many descriptors the process has open: pipes of the kernel,
// and all others.
func (p *Process) FDs() (pipes, others int, err error) {
	entries, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		return 0, 0, err
	}
	for _, entry := range entries {
		link, err := os.Readlink(filepath.Join(p.proc("fd"), entry.Name()))
		switch {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(link, "pipe:"):
			pipes++
		default:
			others++
		}
	}
	return pipes, others, nil
}

// RSS returns the resident memory of the process in bytes.
func (p *Process) RSS() (int64, error) {
	status, err := os.ReadFile(p.proc("status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in the status of %s", p.Name)
}

// Listeners returns how many TCP sockets the process listens on.
func (p *Process) Listeners() (int, error) {
	owned := map[string]bool{}
	entries, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		link, err := os.Readlink(filepath.Join(p.proc("fd"), entry.Name()))
		if inode, ok := strings.CutPrefix(link, "socket:["); ok && err == nil {
			owned[strings.TrimSuffix(inode, "]")] = true
		}
	}
	count := 0
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		text, err := os.ReadFile(p.proc(table))
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(text)) {
			const listen = "0A"
			if f := strings.Fields(line); len(f) > 9 && f[3] == listen && owned[f[9]] {
				count++
			}
		}
	}
	return count, nil
}

func (p *Process) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.PID()), name)
}

// logBuffer keeps what a process prints.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tail returns the last n lines.
func (b *logBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

//go:build linux

package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a command on a pseudo terminal, as a user at a keyboard runs it.
type terminal struct {
	cmd    *exec.Cmd
	master *os.File
	more   chan struct{} // has an item when there is more text
	read   chan struct{} // closed when all is read

	mu  sync.Mutex
	all bytes.Buffer
}

func openTerminal(t *testing.T, cmd *exec.Cmd, rows, columns uint16) *terminal {
	t.Helper()
	master, slave, err := openPTY()
	if err != nil {
		t.Fatalf("open a terminal: %v", err)
	}
	defer slave.Close() // the command has its own
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatalf("set the terminal's size: %v", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term := &terminal{cmd: cmd, master: master, more: make(chan struct{}, 1), read: make(chan struct{})}
	go term.pump() // ends with the command, whose end closes the terminal
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-term.read
		master.Close()
	})
	return term
}

// openPTY opens a pair of terminal ends.
func openPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("find the terminal's number: %w", err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

func (m *terminal) pump() {
	defer close(m.read)
	buf := make([]byte, 4096)
	for {
		n, err := m.master.Read(buf)
		m.mu.Lock()
		m.all.Write(buf[:n])
		m.mu.Unlock()
		select {
		case m.more <- struct{}{}:
		default:
		}
		if err != nil { // EIO once the last process has left the terminal
			return
		}
	}
}

func (m *terminal) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all.String()
}

func (m *terminal) expect(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(quick)
	for !strings.Contains(m.text(), want) {
		select {
		case <-m.more:
		case <-m.read:
			if !strings.Contains(m.text(), want) {
				t.Fatalf("the terminal closed before %q:\n%s", want, m.text())
			}
		case <-deadline:
			t.Fatalf("no %q on the terminal within %s:\n%s", want, quick, m.text())
		}
	}
}

func (m *terminal) write(t *testing.T, keys string) {
	t.Helper()
	if _, err := m.master.WriteString(keys); err != nil {
		t.Fatalf("type on the terminal: %v", err)
	}
}

// resize is what a user does with the corner of a window.
func (m *terminal) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(m.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatalf("resize the terminal: %v", err)
	}
}

func (m *terminal) wait(t *testing.T) error {
	t.Helper()
	return m.cmd.Wait()
}

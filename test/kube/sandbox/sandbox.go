//go:build linux

// Package sandbox runs programs in a private set of Linux namespaces: network, mounts, processes,
// host name and IPC.
//
// The first process of the sandbox is a child of this one and dies with it, and with the first
// process the kernel ends every other, whatever daemons they became; mounts and network devices
// go with the namespaces. So nothing is left behind even when the tests are killed.
//
// A namespace belongs to a thread. The sandbox therefore owns one goroutine that is locked to a
// thread inside it, and everything that must happen inside happens there: starting programs,
// which then are ordinary children of this process, and opening sockets.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config says what the sandbox looks like from inside.
type Config struct {
	// Dir is a folder for the sandbox's own files; it must exist.
	Dir string
	// Init is the command of the first process: it reaps orphans and does nothing else.
	Init []string
	// Hostname is the host name inside.
	Hostname string
	// Files maps absolute paths to the contents that programs inside see there.
	Files map[string]string
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("sandbox: closed")

// Sandbox is a running set of namespaces.
type Sandbox struct {
	cfg  Config
	init *exec.Cmd
	jobs chan func()

	closing chan struct{}
	once    sync.Once
	ended   chan struct{}
}

// New starts a sandbox. Its network has nothing but a loopback device, which is up.
func New(cfg Config) (*Sandbox, error) {
	if len(cfg.Init) == 0 {
		return nil, errors.New("sandbox: no first process")
	}
	s := &Sandbox{
		cfg:     cfg,
		init:    exec.Command(cfg.Init[0], cfg.Init[1:]...),
		jobs:    make(chan func()),
		closing: make(chan struct{}),
		ended:   make(chan struct{}),
	}
	entered := make(chan error, 1)
	go s.thread(entered)
	if err := <-entered; err != nil {
		s.Close()
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	return s, nil
}

// thread lives in the sandbox from New to Close.
func (s *Sandbox) thread(entered chan<- error) {
	defer close(s.ended)
	// Never unlocked: the thread cannot leave the namespaces, so it ends with this goroutine.
	runtime.LockOSThread()
	err := s.enter()
	entered <- err
	if err != nil {
		return
	}
	for {
		select {
		case job := <-s.jobs:
			job()
		case <-s.closing:
			return
		}
	}
}

func (s *Sandbox) enter() error {
	s.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := s.init.Start(); err != nil {
		return fmt.Errorf("start the first process: %w", err)
	}
	pidfd, err := unix.PidfdOpen(s.init.Process.Pid, 0)
	if err != nil {
		return fmt.Errorf("open the first process: %w", err)
	}
	defer unix.Close(pidfd)
	// A thread that shares its root with others may not change its mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the shared root: %w", err)
	}
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	if err := unix.Setns(pidfd, namespaces); err != nil {
		return fmt.Errorf("enter the namespaces: %w", err)
	}
	if err := unix.Sethostname([]byte(s.cfg.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring the loopback device up: %w", err)
	}
	return s.mounts()
}

// mounts hides from the programs inside what they must not share with the machine.
func (s *Sandbox) mounts() error {
	resolved := make(map[string]string, len(s.cfg.Files))
	for name := range s.cfg.Files {
		// /etc/resolv.conf is often a link into /run, which is about to be hidden.
		target, err := filepath.EvalSymlinks(name)
		if err != nil {
			target = name
		}
		resolved[name] = target
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	// /proc shows the processes that its mounter sees, so one inside must mount it.
	if out, err := exec.Command("mount", "-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc").CombinedOutput(); err != nil {
		return fmt.Errorf("mount /proc: %w: %s", err, out)
	}
	if err := unix.Mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	i := 0
	for name, content := range s.cfg.Files {
		i++
		source := filepath.Join(s.cfg.Dir, fmt.Sprintf("file-%d", i))
		if err := os.WriteFile(source, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write the content of %s: %w", name, err)
		}
		if err := bind(source, resolved[name]); err != nil {
			return fmt.Errorf("put %s into place: %w", name, err)
		}
	}
	return nil
}

// bind shows source at target, which it makes if it is missing.
func bind(source, target string) error {
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
	}
	return unix.Mount(source, target, "", unix.MS_BIND, "")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// Pid is the first process, as seen from outside: /proc/PID/ns names the namespaces.
func (s *Sandbox) Pid() int { return s.init.Process.Pid }

// Do runs f on the thread inside the sandbox and waits for it. It must not block for long, as
// nothing else can start meanwhile, and must not start goroutines that are to be inside.
func (s *Sandbox) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.jobs <- func() { result <- f() }:
		return <-result
	case <-s.closing:
		return ErrClosed
	}
}

// Start starts a command inside. The caller must Wait for it, always: the sandbox cannot end
// while a dead child of this process is not reaped. The child dies with the first
// process, and so with this one; Pdeathsig must not be set, as no parent is visible from inside.
func (s *Sandbox) Start(cmd *exec.Cmd) error {
	return s.Do(cmd.Start)
}

// DialContext connects from inside to an address, which must be an IP address and a port: a name
// would be resolved by a goroutine outside.
func (s *Sandbox) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("sandbox: dial %s: not an IP address", address)
	}
	var conn net.Conn
	err = s.Do(func() error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Close ends everything inside and waits for it.
func (s *Sandbox) Close() {
	s.once.Do(func() {
		close(s.closing)
		if s.init.Process != nil {
			_ = s.init.Process.Kill() // it may be dead already
			_ = s.init.Wait()         // its death is what was asked for
		}
		<-s.ended
	})
}

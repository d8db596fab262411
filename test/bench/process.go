package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child of the benchmark: one role, in a process of its own so that
// its processor time and memory can be told from the others'.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer // roles of the bench end when it closes, also when the bench is killed
	log   string
	done  chan struct{}
}

// start runs a command with its standard error, and for anything but a role of
// the bench its standard output, in a log file.
func (b *bench) start(name string, env []string, stdout io.Writer, path string, args ...string) (*process, error) {
	b.children++
	logPath := filepath.Join(b.dir, fmt.Sprintf("%02d-%s.log", b.children, name))
	logFile, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer logFile.Close() // the child has its own
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr, cmd.Stdout = logFile, logFile
	if stdout != nil {
		cmd.Stdout = stdout
	}
	// An interrupt of the terminal reaches the whole group; the bench ends its
	// children itself, in order; should it be killed, the kernel ends them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, stdin: stdin, log: logPath, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// role starts a role of the bench and returns the addresses that it serves on.
func (b *bench) role(name, role string, args ...string) (*process, []string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	p, err := b.start(name, nil, w, b.self, append([]string{roleCommand, role}, args...)...)
	_ = w.Close()
	if err != nil {
		return nil, nil, err
	}
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, nil, fmt.Errorf("%s did not get ready: %w%s", name, err, p.tail())
	}
	return p, strings.Fields(line), nil
}

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tail returns the last lines of the process's log, for an error message.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-3):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), 500)]
	}
	return "\n" + p.name + " logged:\n\t" + strings.Join(lines, "\n\t")
}

// ticksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// cpu returns the processor time that the process has used, in seconds.
func (p *process) cpu() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(text))
}

// parseStat returns user and system time of a line of /proc/PID/stat, in seconds.
func parseStat(line string) (float64, error) {
	// The name in parentheses may itself hold spaces and parentheses.
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	const utime, stime = 11, 12 // fields 14 and 15, counted from the third
	if end < 0 || len(fields) <= stime {
		return 0, errors.New("stat line is too short")
	}
	var ticks uint64
	for _, f := range fields[utime : stime+1] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read stat: %w", err)
		}
		ticks += n
	}
	return float64(ticks) / ticksPerSecond, nil
}

// resident returns the resident memory of the process, in KiB.
func (p *process) resident() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseResident(string(text))
}

// parseResident returns VmRSS of the text of /proc/PID/status, in KiB.
func parseResident(status string) (float64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
		}
	}
	return 0, errors.New("status has no VmRSS")
}

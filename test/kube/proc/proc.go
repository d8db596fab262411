// Package proc owns the long-running programs of the tests: each has a log file, one goroutine
// that waits for it, and an end that its owner chooses.
package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a program that was started.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; read after done
}

// Start starts cmd by calling start, which is cmd.Start or puts the process elsewhere. Both
// outputs are appended to the file log.
func Start(name, log string, cmd *exec.Cmd, start func(*exec.Cmd) error) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer file.Close() // the child has its own copy
	cmd.Stdout, cmd.Stderr = file, file
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// Name is the name given to Start.
func (p *Process) Name() string { return p.name }

// Pid is the process as seen from outside any namespace.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log is the path of the log.
func (p *Process) Log() string { return p.log }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process at once, as a crash would, and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Stop asks the process to end, and ends it if it has not within the given time. It returns
// whether the process ended by itself.
func (p *Process) Stop(within time.Duration) bool {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
		return true
	case <-time.After(within):
		p.Kill()
		return false
	}
}

// Err is how the process ended, nil for exit status 0. It waits for the end.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Ended describes a process that is no more, and is nil while it runs.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		how := "exit status 0"
		if p.err != nil {
			how = p.err.Error()
		}
		return fmt.Errorf("%s has ended: %s (log: %s)\n%s", p.name, how, p.log, p.Tail(15))
	default:
		return nil
	}
}

// Tail is the end of the log.
func (p *Process) Tail(lines int) string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Sprintf("(the log cannot be read: %v)", err)
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Wait calls check until it returns nil, one of the processes has ended, or ctx has. Its error
// says what was waited for, why it was not so at last, and the end of the processes' logs.
func Wait(ctx context.Context, what string, check func(context.Context) error, processes ...*Process) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		for _, p := range processes {
			if ended := p.Ended(); ended != nil {
				return fmt.Errorf("wait until %s: %w", what, ended)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			var logs strings.Builder
			for _, p := range processes {
				fmt.Fprintf(&logs, "\n--- %s (%s)\n%s", p.name, p.log, p.Tail(15))
			}
			return fmt.Errorf("wait until %s: %w; at last: %w%s", what, context.Cause(ctx), err, logs.String())
		}
	}
}

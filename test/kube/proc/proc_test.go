package proc

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func start(t *testing.T, args ...string) *Process {
	t.Helper()
	p, err := Start(args[0], filepath.Join(t.TempDir(), "log"), exec.Command(args[0], args[1:]...), (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestEnded(t *testing.T) {
	p := start(t, "sh", "-c", "echo the last words; exit 3")
	<-p.Done()
	err := p.Ended()
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "the last words") {
		t.Errorf("Ended: %v", err)
	}
}

func TestStop(t *testing.T) {
	if p := start(t, "sleep", "60"); !p.Stop(10 * time.Second) {
		t.Error("a program that obeys SIGTERM had to be killed")
	}
	stubborn := start(t, "sh", "-c", "trap '' TERM; echo ready; sleep 60")
	ready := func(context.Context) error {
		if stubborn.Tail(1) != "ready" {
			return errors.New("not yet")
		}
		return nil
	}
	if err := Wait(t.Context(), "the trap is set", ready, stubborn); err != nil {
		t.Fatal(err)
	}
	if stubborn.Stop(50 * time.Millisecond) {
		t.Error("a program that ignores SIGTERM was said to have stopped")
	}
}

func TestWait(t *testing.T) {
	never := errors.New("never")
	check := func(context.Context) error { return never }

	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	running := start(t, "sleep", "60")
	if err := Wait(ctx, "it is so", check, running); !errors.Is(err, never) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait beyond its time: %v", err)
	}

	dead := start(t, "false")
	<-dead.Done()
	if err := Wait(t.Context(), "it is so", check, running, dead); err == nil || !strings.Contains(err.Error(), "false has ended") {
		t.Errorf("Wait for the dead: %v", err)
	}
}

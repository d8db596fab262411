package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// Programs are the paths of Postern's programs, built from this checkout.
type Programs struct {
	Dir     string
	Postern string // cmd/postern
	Agent   string // cmd/postern-agent, stripped, as it ships
}

// Root returns the root directory of the checkout.
func Root() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		panic("the harness does not know where its source is")
	}
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Build builds the programs into a new temporary directory; the caller removes
// it. With POSTERN_E2E_RACE=1 the race detector watches inside them: a test
// then fails if a program reports a race.
func Build() (*Programs, error) {
	dir, err := os.MkdirTemp("", "postern-e2e-")
	if err != nil {
		return nil, err
	}
	p := &Programs{Dir: dir, Postern: filepath.Join(dir, "postern"), Agent: filepath.Join(dir, "postern-agent")}
	begin := time.Now()
	fmt.Println("building cmd/postern and cmd/postern-agent")
	args := []string{"build", "-o", p.Postern}
	if Race() {
		args = append(args, "-race")
	}
	for _, args := range [][]string{
		append(args, "./cmd/postern"),
		{"build", "-ldflags=-s -w", "-o", p.Agent, "./cmd/postern-agent"},
	} {
		build := exec.Command("go", args...)
		build.Dir = Root()
		build.Env = append(os.Environ(), "GOWORK=off")
		build.Stdout, build.Stderr = os.Stdout, os.Stderr
		if err := build.Run(); err != nil {
			return p, fmt.Errorf("go %v: %w", args, err)
		}
	}
	fmt.Printf("built in %.0f s\n", time.Since(begin).Seconds())
	return p, nil
}

// Race says whether the programs are built with the race detector.
func Race() bool { return os.Getenv("POSTERN_E2E_RACE") == "1" }

//go:build !unix

package cli

import (
	"errors"
	"fmt"
	"os/exec"

	"postern.dev/postern/internal/cli/command"
)

// become runs a program as this one's child, and passes on its exit code.
func become(w command.World, program string, args []string) error {
	c := exec.Command(program, args...)
	c.Stdin, c.Stdout, c.Stderr = w.Stdin, w.Stdout, w.Stderr
	err := c.Run()
	if exited, ok := errors.AsType[*exec.ExitError](err); ok {
		return &command.ExitError{Code: max(1, exited.ExitCode()), Err: fmt.Errorf("%s: %w", operatorProgram, err)}
	}
	return err
}

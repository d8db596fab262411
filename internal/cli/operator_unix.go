//go:build unix

package cli

import (
	"fmt"
	"os"
	"syscall"

	"postern.dev/postern/internal/cli/command"
)

// become runs a program in place of this one. It does not return when it succeeds.
func become(_ command.World, program string, args []string) error {
	err := syscall.Exec(program, append([]string{operatorProgram}, args...), os.Environ())
	return fmt.Errorf("run %s: %w", program, err)
}

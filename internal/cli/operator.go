package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/wire"
)

// operatorProgram is the program of the operator. It is one of its own, so that Kubernetes'
// libraries are in no other.
const operatorProgram = "postern-operator"

func newOperator(w command.World) *cobra.Command {
	return &cobra.Command{
		Use:   "operator [ARGUMENT...]",
		Short: "Run the operator in a Kubernetes cluster",
		Long: `Run the operator, which makes Proxies work: resources that point pods of a Kubernetes
cluster to a private network. It is a program of its own, postern-operator, that this
command runs with the same arguments. It is looked for beside this program, then in
PATH. See postern operator --help where it is installed.`,
		Example: `  postern operator --connect-url tls://hub.example.org --organization acme \
    --proxy-image ghcr.io/postern-dev/postern:v1.0.0
  postern operator cleanup`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			program, err := findOperator()
			if err != nil {
				if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
					return cmd.Help()
				}
				return err
			}
			return become(w, program, args)
		},
	}
}

// findOperator returns the path of the operator's program.
func findOperator() (string, error) {
	name := operatorProgram
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s is neither beside this program nor in PATH", operatorProgram).WithCause(err).
			WithHint("it is released beside this program, and its image is what the chart postern-operator runs")
	}
	return path, err
}

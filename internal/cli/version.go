package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"postern.dev/postern/internal/cli/command"
)

// versionInfo is what "version" prints.
type versionInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion(w command.World) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  postern version -o json",
		Args:    command.Exact(),
	}
	output := bindFormat(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := versionInfo{command.Version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
		if *output == formatTable {
			_, err := fmt.Fprintf(w.Stdout, "postern %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			return wrote(err)
		}
		return output.print(w.Stdout, v, nil)
	}
	return cmd
}

// Package charts holds the Helm charts of Postern, for programs that render them without Helm:
// postern install, through package install.
package charts

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:embed all:private-network-agent all:postern-hub all:postern-operator
var files embed.FS

// The charts, by the names of their directories.
const (
	Agent    = "private-network-agent"
	Hub      = "postern-hub"
	Operator = "postern-operator"
)

// Files returns the files of a chart, with Chart.yaml at the top. It fails for a name that is none of the above.
func Files(chart string) (fs.FS, error) {
	if _, err := fs.Stat(files, chart+"/Chart.yaml"); err != nil {
		return nil, fmt.Errorf("there is no chart %q: %w", chart, err)
	}
	return fs.Sub(files, chart)
}

// Names returns the names of all charts.
func Names() []string { return []string{Agent, Hub, Operator} }

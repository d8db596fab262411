// Command gendocs writes the reference of commands, settings, metrics and exit
// codes into docs/reference, from what the program itself knows. `make generate`
// runs it; a test fails when the reference is out of date.
package main

//go:generate go run . ../../../docs/reference

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gendocs DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "gendocs:", err)
		os.Exit(1)
	}
}

// write replaces the generated files below dir.
func write(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, "cli")); err != nil { //nolint:gosec // the directory is named by whoever runs this
		return err
	}
	for name, text := range pages() {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // documents are for everybody
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // as above
			return err
		}
	}
	return nil
}

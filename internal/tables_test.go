package internal_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// tableRule is the second line of a table.
var tableRule = regexp.MustCompile(`^\|[ :|-]+$`)

// TestTablesAreWhole finds rows in documents that belong to no table, for a blank line
// parts them from it: they are shown as text.
func TestTablesAreWhole(t *testing.T) {
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if path.Ext(name) != ".md" {
			return nil
		}
		text, err := os.ReadFile(name)
		for _, row := range strayRows(string(text)) {
			t.Errorf("%s: a row outside of a table: %s", name, row)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strayRows("| a |\n| --- |\n| b |\n\n| c |\n"); len(got) != 1 {
		t.Errorf("stray rows of a broken table: %q", got)
	}
}

// strayRows returns the rows after which no table goes on that they would begin.
func strayRows(text string) (stray []string) {
	lines, code := strings.Split(text, "\n"), false
	for i, line := range lines[:len(lines)-1] {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		begins := strings.HasPrefix(line, "|") && (i == 0 || !strings.HasPrefix(lines[i-1], "|"))
		if begins && !code && !tableRule.MatchString(lines[i+1]) {
			stray = append(stray, line)
		}
	}
	return stray
}

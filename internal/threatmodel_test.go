package internal_test

import (
	"fmt"
	"go/ast"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// testReference is how a document names tests: `DIRECTORY` (`TestA`, `TestB`).
	testReference = regexp.MustCompile("`([a-z0-9/]+)` \\(((?:`(?:Test|Fuzz)[A-Za-z0-9_]+`(?:, )?)+)\\)")
	testName      = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]*)`")
)

// TestThreatModelIsHeld keeps docs/threat-model.md true: every threat names a
// test, and every test that it names is there.
func TestThreatModelIsHeld(t *testing.T) {
	text, err := os.ReadFile("../docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]string{}
	for _, file := range loadSources(t, "..") {
		for _, decl := range file.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && file.test && fn.Recv == nil {
				tests[file.dir] = append(tests[file.dir], fn.Name.Name)
			}
		}
	}
	for _, problem := range threatProblems(string(text), tests) {
		t.Error(problem)
	}
}

// threatProblems finds tests that do not exist, threats that name none, and
// boundaries without threats. tests are the names by directory.
func threatProblems(text string, tests map[string][]string) (problems []string) {
	section, boundary, rows := "", false, 0
	leave := func() {
		if boundary && section != "" && rows == 0 {
			problems = append(problems, fmt.Sprintf("%q has no table of threats", section))
		}
		section, rows = "", 0
	}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "## "):
			leave()
			boundary = strings.HasPrefix(line, "## The boundaries")
		case strings.HasPrefix(line, "### "):
			leave()
			section = line
		}
		named := 0
		for _, ref := range testReference.FindAllStringSubmatch(line, -1) {
			for _, name := range testName.FindAllStringSubmatch(ref[2], -1) {
				named++
				if !slices.Contains(tests[path.Clean(ref[1])], name[1]) {
					problems = append(problems, fmt.Sprintf("line %d: there is no %s in %s", number, name[1], ref[1]))
				}
			}
		}
		if all := len(testName.FindAllString(line, -1)); all != named {
			problems = append(problems, fmt.Sprintf("line %d: %d tests are named without their directory; write `DIR` (`TestA`, `TestB`)", number, all-named))
		}
		if boundary && section != "" && strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| ---") && !strings.HasPrefix(line, "| threat ") {
			rows++
			if named == 0 {
				problems = append(problems, fmt.Sprintf("line %d: no test holds this threat: %s", number, line))
			}
		}
	}
	leave()
	return problems
}

func TestThreatProblems(t *testing.T) {
	const head = "## The boundaries\n### A\n| threat | what holds it | tested by |\n| --- | --- | --- |\n"
	tests := map[string][]string{"internal/a": {"TestA", "FuzzB"}}
	for _, tt := range []struct{ text, want string }{
		{head + "| x | y | `internal/a` (`TestA`, `FuzzB`) |\n", ""},
		{head + "| x | y | `internal/a` (`TestGone`) |\n", "there is no TestGone"},
		{head + "| x | y | `internal/b` (`TestA`) |\n", "there is no TestA"},
		{head + "| x | y | `TestA` |\n", "without their directory"},
		{head + "| x | y | somebody |\n", "no test holds"},
		{head, "no table of threats"},
		{head + "| x | y | `internal/a` (`TestA`) |\n## Other\n### B\n", ""},
	} {
		got := threatProblems(tt.text, tests)
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) == 0 || !strings.Contains(got[0], tt.want)) {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

package doc_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern.dev/postern/test/guides/doc"
)

const root = "../../.."

// TestMarkedBlocksAreUsed looks that each block that a guide marks is one that a test names. The
// tests name them in double quotes, after the name of the guide.
func TestMarkedBlocksAreUsed(t *testing.T) {
	files, err := filepath.Glob("../*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var tests strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(text)
	}
	guides, err := filepath.Glob(root + "/docs/guide/*.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, guide := range guides {
		name := filepath.Base(guide)
		examples, err := doc.Examples(root, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, example := range examples {
			blocks++
			if !named(tests.String(), name, example.Text) {
				t.Errorf("%s:%d: marked for the test of guides, but no test names it", name, example.Line)
			}
		}
	}
	if blocks == 0 {
		t.Error("no guide marks a block")
	}
}

// named says whether a test names the block: `"GUIDE", "TEXT"` or, for what has quotes in it,
// "`TEXT`".
func named(tests, guide, block string) bool {
	for _, after := range strings.Split(tests, `"`+guide+`", `)[1:] {
		quote := after[:1]
		text, _, found := strings.Cut(after[1:], quote)
		if found && (quote == `"` || quote == "`") && strings.Contains(block, text) {
			return true
		}
	}
	return false
}

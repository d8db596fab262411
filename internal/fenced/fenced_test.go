package fenced_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/fenced"
)

const document = `# Guide

  ` + "```sh tested" + `
  first
  ` + "```" + `

## Run it

` + "```yaml" + `
## no heading
server: https://hub.example.org
` + "```" + `
` + "```" + `
plain
` + "```" + `
` + "```yaml guides" + `
without an end
`

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "guide.md")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBlocks(t *testing.T) {
	file := write(t, document)
	got, err := fenced.Blocks(file)
	want := []fenced.Block{
		{File: file, Line: 3, Words: []string{"sh", "tested"}, Text: "  first\n"},
		{File: file, Line: 9, Heading: "Run it", Words: []string{"yaml"}, Text: "## no heading\nserver: https://hub.example.org\n"},
		{File: file, Line: 13, Heading: "Run it", Words: []string{}, Text: "plain\n"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := fenced.Blocks(file + ".none"); err == nil {
		t.Error("a document that is not there was read")
	}
}

func TestFind(t *testing.T) {
	file := write(t, document)
	if b, err := fenced.Find(file, "yaml", "server:"); err != nil || b.Line != 9 {
		t.Errorf("%+v, %v", b, err)
	}
	for _, tt := range [][2]string{{"yaml", "plain"}, {"sh", "server:"}, {"guides", ""}} {
		if b, err := fenced.Find(file, tt[0], tt[1]); err == nil || !strings.Contains(err.Error(), "has 0 blocks") {
			t.Errorf("%q: %+v, %v", tt, b, err)
		}
	}
	twice := write(t, strings.Repeat("```yaml\na\n```\n", 2))
	if b, err := fenced.Find(twice, "yaml", "a"); err == nil {
		t.Errorf("one of two: %+v", b)
	}
}

func TestReplaceWantsWhatItReplaces(t *testing.T) {
	b := fenced.Block{File: "g.md", Line: 3, Text: "server: https://hub.example.org\n"}
	if got, err := b.Replace("hub.example.org", "127.0.0.1"); err != nil || got != "server: https://127.0.0.1\n" {
		t.Errorf("Replace: %q, %v", got, err)
	}
	if got, err := b.Replace("token: …", "token: t"); err == nil {
		t.Errorf("Replace of what is not there: %q", got)
	}
}

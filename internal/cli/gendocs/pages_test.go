package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// reference is where the pages are.
const reference = "../../../docs/reference"

// TestUpToDate compares the pages with those in the repository.
func TestUpToDate(t *testing.T) {
	want := pages()
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(reference, filepath.FromSlash(name)))
		if err != nil || string(got) != text {
			t.Errorf("docs/reference/%s is out of date: run make generate", name)
		}
	}
	err := filepath.WalkDir(filepath.Join(reference, "cli"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if name := "cli/" + e.Name(); want[name] == "" {
			t.Errorf("docs/reference/%s describes no command: run make generate", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestEveryMetric looks that each metric of the roles has a line: a new set of them is forgotten easily.
func TestEveryMetric(t *testing.T) {
	files, err := filepath.Glob("../../observe/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	named := regexp.MustCompile(`"(postern_[a-z_]+)"`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range named.FindAllStringSubmatch(string(text), -1) {
			if !strings.HasSuffix(file, "_test.go") && !strings.Contains(pages()["metrics.md"], "`"+name[1]+"`") {
				t.Errorf("metrics.md has no %s of %s", name[1], file)
			}
		}
	}
}

// TestPages looks at what every page has to have.
func TestPages(t *testing.T) {
	for name, text := range pages() {
		if !strings.HasPrefix(name, "cli/postern_") || strings.Contains(name, "completion") || strings.Contains(text, "\n## Commands\n") {
			continue
		}
		if !strings.Contains(text, "\n## Examples\n") {
			t.Errorf("%s has no example", name)
		}
	}
	for name, words := range map[string][]string{
		"environment.md": {"`POSTERN_CONNECT_URL`", "`AGENT_PROXY`", "`UPBOUND_TOKEN`", "`POSTERN_ALLOW`"},
		"metrics.md":     {"`postern_stream_opens_total`", "`postern_build_info`", "`postern_hub_agent_replicas`"},
		"exit-codes.md":  {"| 0 |", "| 6 |"},
	} {
		for _, word := range words {
			if !strings.Contains(pages()[name], word) {
				t.Errorf("%s has no %s", name, word)
			}
		}
	}
}

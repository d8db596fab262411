// Package doc reads the examples of the guides that the real programs are run with.
//
// Their fenced blocks say so by the word "guides" after the language. A test names an example by a
// text in it, and writes its own values in the place of the guide's; each of those has to be in
// the example, so that the two do not grow apart.
package doc

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Example is a block of a guide.
type Example struct {
	// Guide is the file below docs/guide.
	Guide string
	// Line is where the block begins, from 1.
	Line int
	// Text is what is in it.
	Text string
}

// Examples returns the blocks of a guide that are marked, in their order. Root is that of the
// repository.
func Examples(root, guide string) ([]Example, error) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "guide", guide))
	if err != nil {
		return nil, fmt.Errorf("read the guide: %w", err)
	}
	var (
		all    []Example
		open   *Example
		marked bool
	)
	for i, line := range strings.Split(string(text), "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open == nil && strings.HasPrefix(trimmed, "```"):
			open = &Example{Guide: guide, Line: i + 1}
			marked = slices.Contains(strings.Fields(trimmed[3:]), "guides")
		case open != nil && trimmed == "```":
			if marked {
				all = append(all, *open)
			}
			open = nil
		case open != nil:
			open.Text += line + "\n"
		}
	}
	return all, nil
}

// Find returns the one marked block of a guide that holds a text.
func Find(root, guide, text string) (Example, error) {
	all, err := Examples(root, guide)
	if err != nil {
		return Example{}, err
	}
	found := slices.DeleteFunc(all, func(e Example) bool { return !strings.Contains(e.Text, text) })
	if len(found) != 1 {
		return Example{}, fmt.Errorf("%s has %d blocks for the test of guides with %q, not one", guide, len(found), text)
	}
	return found[0], nil
}

// Replace writes values in the place of the example's own, in this order: pairs of old and new. An
// old text that is not there is an error.
func (e Example) Replace(pairs ...string) (string, error) {
	text := e.Text
	for pair := range slices.Chunk(pairs, 2) {
		if !strings.Contains(text, pair[0]) {
			return "", fmt.Errorf("%s:%d: there is no %q", e.Guide, e.Line, pair[0])
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text, nil
}

// Package doc finds the examples of the guides that the real programs are run with.
//
// Their fenced blocks say so by the word "guides" after the language. A test names an example by a
// text in it, and writes its own values in the place of the guide's; each of those has to be in
// the example, so that the two do not grow apart.
package doc

import (
	"path/filepath"
	"slices"

	"postern.dev/postern/internal/fenced"
)

// mark is the word that these blocks have.
const mark = "guides"

// Examples returns the blocks of a guide, a file below docs/guide, that are marked, in their
// order. Root is that of the repository.
func Examples(root, guide string) ([]fenced.Block, error) {
	all, err := fenced.Blocks(path(root, guide))
	return slices.DeleteFunc(all, func(b fenced.Block) bool { return !b.Is(mark) }), err
}

// Find returns the one marked block of a guide that holds a text.
func Find(root, guide, text string) (fenced.Block, error) {
	return fenced.Find(path(root, guide), mark, text)
}

func path(root, guide string) string { return filepath.Join(root, "docs", "guide", guide) }

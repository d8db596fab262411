// Package fenced reads the fenced blocks of documents, for tests that hold documents to the code:
// they run what the reader would, with values of their own.
package fenced

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Block is what stands between two fences of a document.
type Block struct {
	// File is the document, and Line where the block begins, from 1.
	File string
	Line int
	// Heading is the second-level heading that it stands under; empty before the first.
	Heading string
	// Words stand behind the fence: the language, and which tests run the block.
	Words []string
	// Text is what is in it.
	Text string
}

// Blocks returns the blocks of a document, in their order. One without an end is none.
func Blocks(file string) ([]Block, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	return parse(file, string(text)), nil
}

func parse(file, text string) []Block {
	var (
		all     []Block
		open    *Block
		heading string
		n       int
	)
	for line := range strings.Lines(text) {
		n++
		trimmed := strings.TrimSpace(line)
		switch {
		case open != nil && trimmed == "```":
			all = append(all, *open)
			open = nil
		case open != nil:
			open.Text += line
		case strings.HasPrefix(trimmed, "```"):
			open = &Block{File: file, Line: n, Heading: heading, Words: strings.Fields(trimmed[3:])}
		case strings.HasPrefix(line, "## "):
			heading = strings.TrimSpace(line[3:])
		}
	}
	return all
}

// Is reports whether a word stands behind the fence.
func (b Block) Is(word string) bool { return slices.Contains(b.Words, word) }

// Find returns the one block of a document that a word says it is, and that holds a text.
func Find(file, word, text string) (Block, error) {
	all, err := Blocks(file)
	if err != nil {
		return Block{}, err
	}
	all = slices.DeleteFunc(all, func(b Block) bool { return !b.Is(word) || !strings.Contains(b.Text, text) })
	if len(all) != 1 {
		return Block{}, fmt.Errorf("%s has %d blocks %q with %q, not one", file, len(all), word, text)
	}
	return all[0], nil
}

// Replace writes values in the place of the example's own, in this order: pairs of old and new. An
// old text that is not there is an error, so that documents and tests do not grow apart.
func (b Block) Replace(pairs ...string) (string, error) {
	text := b.Text
	for pair := range slices.Chunk(pairs, 2) {
		if !strings.Contains(text, pair[0]) {
			return "", fmt.Errorf("%s:%d: there is no %q", b.File, b.Line, pair[0])
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text, nil
}

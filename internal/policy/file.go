package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of a policy file.
const (
	MaxFile     = 1 << 20 // bytes
	maxEntries  = 10_000
	maxProblems = 20 // told at once
)

// The keys of a policy file.
const (
	keyAllow = "allow"
	keyDeny  = "deny"
	keyRule  = "rule"
	keyFrom  = "from"
)

// Problem is one thing that is wrong with a policy file.
type Problem struct {
	Line int // 0: the file as a whole
	Text string
}

// FileError says what is wrong with a policy file.
type FileError struct {
	Path     string
	Problems []Problem // at least one
}

// Error returns all problems, each with its line.
func (e *FileError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = fmt.Sprintf("%s: %s", origin(e.Path, p.Line), p.Text)
	}
	return strings.Join(lines, "; ")
}

func origin(path string, line int) string {
	if line == 0 {
		return path
	}
	return fmt.Sprintf("%s:%d", path, line)
}

// ReadFile reads a policy file; see ParseFile. An error is a *FileError.
func ReadFile(path string) ([]Entry, error) {
	data, err := readLimited(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return ParseFile(path, data)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}

func unreadable(path string, err error) *FileError {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return &FileError{path, []Problem{{Text: fmt.Sprintf("cannot be read: %v", err)}}}
}

// ParseFile reads the policy in data, which is YAML:
//
//	allow:
//	  - tcp:db.example.org:5432          # for everybody
//	  - rule: tcp:10.0.0.0/8:5000-5999
//	    from: [proxy:ci, group:dba]      # for these alone
//	deny:
//	  - tcp:10.0.9.0/24:*
//
// It is strict: an unknown key, a key given twice, an alias and a rule that does
// not parse are refused with their lines, and so is a file without a policy, which
// may be half of one; "allow: []" allows nothing. path is for messages and origins.
// An error is a *FileError.
func ParseFile(path string, data []byte) ([]Entry, error) {
	p := &fileParser{name: filepath.Base(path)}
	if len(data) > MaxFile {
		p.fail(0, "is longer than %d bytes", MaxFile)
	} else {
		p.document(data)
	}
	if len(p.problems) > 0 {
		return nil, &FileError{path, p.problems}
	}
	return p.entries, nil
}

type fileParser struct {
	name     string
	entries  []Entry
	problems []Problem
}

func (p *fileParser) fail(line int, format string, args ...any) {
	if len(p.problems) < maxProblems {
		p.problems = append(p.problems, Problem{line, fmt.Sprintf(format, args...)})
	}
}

func (p *fileParser) document(data []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		p.fail(0, "holds no policy; to allow nothing write \"allow: []\"")
		return
	} else if err != nil {
		p.fail(0, "is not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		p.fail(0, "holds more than one YAML document, and only one is read")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode || len(root.Content) == 0 {
		p.fail(root.Line, "want the lists \"allow:\" and \"deny:\"; to allow nothing write \"allow: []\"")
		return
	}
	p.mapping(root, []string{keyAllow, keyDeny}, func(key string, value *yaml.Node) {
		if value.Kind != yaml.SequenceNode || value.Anchor != "" {
			p.fail(value.Line, "%s: want a list: one \"- RULE\" a line", key)
			return
		}
		for _, item := range value.Content {
			p.entry(key == keyDeny, item)
		}
	})
}

// mapping calls each for every known key.
func (p *fileParser) mapping(n *yaml.Node, known []string, each func(key string, value *yaml.Node)) {
	lines := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch first, twice := lines[key.Value]; {
		case key.Kind != yaml.ScalarNode || !slices.Contains(known, key.Value):
			p.fail(key.Line, "unknown key %.60q; want %s", key.Value, strings.Join(known, " or "))
		case twice:
			p.fail(key.Line, "%s is given twice, first in line %d", key.Value, first)
		default:
			lines[key.Value] = key.Line
			each(key.Value, value)
		}
	}
}

// entry reads an item of a list: a rule, or a mapping of rule and from.
func (p *fileParser) entry(deny bool, n *yaml.Node) {
	if len(p.entries) >= maxEntries {
		p.fail(n.Line, "more than %d rules", maxEntries)
		return
	}
	e := Entry{Deny: deny, Origin: origin(p.name, n.Line)}
	before := len(p.problems)
	switch {
	case n.Kind != yaml.MappingNode:
		p.rule(&e, n)
	case n.Anchor != "":
		p.fail(n.Line, "anchors and aliases are not supported; write the entry out")
		return
	default:
		p.mapping(n, []string{keyRule, keyFrom}, func(key string, value *yaml.Node) {
			if key == keyRule {
				p.rule(&e, value)
			} else {
				p.from(&e, value)
			}
		})
		if e.Rule == (Rule{}) && len(p.problems) == before {
			p.fail(n.Line, "the entry has no rule; write \"rule: tcp:HOST:PORT\"")
		}
	}
	p.entries = append(p.entries, e)
}

func (p *fileParser) rule(e *Entry, n *yaml.Node) {
	text, ok := p.scalar(n, "a rule")
	if !ok {
		return
	}
	r, err := ParseRule(text)
	if err != nil {
		p.fail(n.Line, "%v", err)
	}
	if r.IsGateway() && !e.Deny {
		p.fail(n.Line, "%v", ErrGatewayRule)
	}
	e.Rule = r
}

func (p *fileParser) from(e *Entry, n *yaml.Node) {
	if n.Kind != yaml.SequenceNode || n.Anchor != "" || len(n.Content) == 0 {
		p.fail(n.Line, "from: want a list such as [proxy:NAME, group:NAME]; without from the rule holds for everybody")
		return
	}
	for _, item := range n.Content {
		text, ok := p.scalar(item, "KIND:NAME")
		if !ok {
			continue
		}
		who, err := ParseWhom(text)
		if err != nil {
			p.fail(item.Line, "from: %v", err)
		}
		e.From = append(e.From, who)
	}
}

func (p *fileParser) scalar(n *yaml.Node, want string) (string, bool) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		p.fail(n.Line, "anchors and aliases are not supported; write the value out")
	case n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str":
		p.fail(n.Line, "want %s", want)
	default:
		return n.Value, true
	}
	return "", false
}

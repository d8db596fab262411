package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decode reads a YAML file into the fields that neither a flag nor the
// environment has set. It walks the parsed nodes itself, where a struct decoder
// would stop at the first error of a kind and name Go types instead of settings.
func (s *Set) decode(path string, data []byte) []error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // nothing but comments
	} else if err != nil {
		return []error{fileError(path, 0, "", "is not YAML: "+strings.TrimPrefix(err.Error(), "yaml: "))}
	}
	var errs []error
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		errs = append(errs, fileError(path, 0, "", "holds more than one YAML document, and only one is read"))
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return errs
	}
	return append(errs, s.mapping(path, root)...)
}

// mapping reads settings from a mapping of a file.
func (s *Set) mapping(path string, root *yaml.Node) (errs []error) {
	if root.Kind != yaml.MappingNode {
		return []error{fileError(path, root.Line, "", "want settings as \"key: value\" lines")}
	}
	keys := make(map[string]*Field)
	for _, f := range s.list {
		if k := f.Key(); k != "" {
			keys[k] = f
		}
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		f, known := keys[key.Value]
		switch first, twice := lines[key.Value]; {
		case key.Kind != yaml.ScalarNode || !known:
			errs = append(errs, s.unknown(path, key, keys))
		case twice:
			errs = append(errs, fileError(path, key.Line, f.Name, fmt.Sprintf("%s is given twice, first in line %d", key.Value, first)))
		default:
			lines[key.Value] = key.Line
			if f.shape == shapeEntries {
				f.origin = Origin{SourceFile, fmt.Sprintf("%s:%d", path, key.Line)}
				errs = append(errs, f.entries.decode(path, f, value)...)
				continue
			}
			if err := f.decode(path, key.Line, value); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errs
}

// decode stores a value from a file, unless a stronger source has set the field.
// Its shape is checked even then, so that a mistake in the file does not lie in wait.
func (f *Field) decode(path string, line int, value *yaml.Node) error {
	var values []string
	switch {
	case f.shape == shapeList && value.Kind == yaml.SequenceNode:
		for _, item := range value.Content {
			if problem := scalarProblem(f, item); problem != "" {
				return fileError(path, item.Line, f.Name, problem)
			}
			values = append(values, item.Value)
		}
	case f.shape == shapeList:
		return fileError(path, line, f.Name, fmt.Sprintf("want a list: one \"- %s\" a line", f.kind))
	default:
		if problem := scalarProblem(f, value); problem != "" {
			return fileError(path, line, f.Name, problem)
		}
		values = []string{value.Value}
	}
	if f.origin.Source > SourceFile {
		return nil
	}
	if err := f.storeAll(values, Origin{SourceFile, fmt.Sprintf("%s:%d", path, line)}); err != nil {
		return fileError(path, line, f.Name, err.Error())
	}
	return nil
}

// scalarProblem says why a node cannot be the value of a field, or "".
func scalarProblem(f *Field, n *yaml.Node) string {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return "anchors and aliases are not supported; write the value out"
	}
	if n.Kind != yaml.ScalarNode {
		return fmt.Sprintf("want a single %s", f.kind)
	}
	tag := n.ShortTag()
	switch {
	case tag == "!!null":
		return "has no value; give one or remove the line"
	case f.shape == shapeBool && tag != "!!bool":
		return fmt.Sprintf("%q is neither true nor false", n.Value)
	case f.shape != shapeBool && tag != "!!str" && tag != "!!int":
		// A name may be all digits, but 1.10, true and dates lose their spelling
		// in other YAML tools: whoever means the text puts it in quotes.
		return fmt.Sprintf("%s is not text; put it in quotes", n.Value)
	}
	return ""
}

// unknown describes a key that is no setting, with the nearest that is one.
func (s *Set) unknown(path string, key *yaml.Node, keys map[string]*Field) error {
	if key.Kind != yaml.ScalarNode {
		return fileError(path, key.Line, "", "a key must be the name of a setting")
	}
	for _, f := range s.list {
		if f.secret && strings.EqualFold(key.Value, f.Name) {
			return fileError(path, key.Line, "", fmt.Sprintf("%q is a secret and does not belong in this file; "+
				"keep it in a file of its own, or in %s", key.Value, f.Env()))
		}
		// Of an entry: the variable that holds a secret has no fixed name there.
		if name, ok := strings.CutSuffix(f.Name, "-env"); ok && strings.EqualFold(strings.ReplaceAll(key.Value, "-", ""), strings.ReplaceAll(name, "-", "")) {
			return fileError(path, key.Line, "", fmt.Sprintf("%q is a secret and does not belong in this file; "+
				"keep it in a file of its own, named by %sFile, or in a variable, named by %s", key.Value, strings.TrimSuffix(f.Key(), "Env"), f.Key()))
		}
	}
	problem := fmt.Sprintf("unknown setting %q", key.Value)
	best, limit := "", 3
	for name := range keys {
		if strings.EqualFold(strings.ReplaceAll(key.Value, "-", ""), name) ||
			strings.EqualFold(strings.ReplaceAll(key.Value, "_", ""), name) {
			best = name
			break
		}
		if d := distance(key.Value, name); d < limit || d == limit && best != "" && name < best {
			best, limit = name, d
		}
	}
	if best != "" {
		problem += fmt.Sprintf("; did you mean %q?", best)
	}
	return fileError(path, key.Line, "", problem)
}

// fileError makes the error for a line of a file; line 0 means the file as a whole.
func fileError(path string, line int, setting, problem string) *SettingError {
	where := path
	if line > 0 {
		where = fmt.Sprintf("%s:%d", path, line)
	}
	return &SettingError{Setting: setting, Origin: Origin{SourceFile, where}, Problem: problem}
}

// distance returns the number of edits that turn a into b, bounded for long texts.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

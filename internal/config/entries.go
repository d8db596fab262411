package config

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxEntries bounds a list of mappings.
const maxEntries = 256

// entries is a list of mappings in a file, each with settings of its own.
type entries struct {
	bind  func() Settings // makes the settings of an entry
	sets  []*Set          // of the entries, in the order of the file
	where []Origin        // of the entries
}

// field makes the field of a setting that is a list of mappings.
func (e *entries) field(name, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: "LIST", shape: shapeEntries, entries: e,
		get: func() string {
			var names []string
			for _, s := range e.sets {
				names = append(names, s.list[0].String())
			}
			return strings.Join(names, ",")
		},
	}
}

// decode reads the list. The names of what is wrong begin with f's.
func (e *entries) decode(path string, f *Field, list *yaml.Node) (errs []error) {
	switch {
	case list.Kind == yaml.AliasNode || list.Anchor != "":
		return []error{fileError(path, list.Line, f.Name, "anchors and aliases are not supported; write the value out")}
	case list.Kind != yaml.SequenceNode:
		return []error{fileError(path, list.Line, f.Name, "want a list: \"- \" begins each entry")}
	case len(list.Content) == 0:
		return []error{fileError(path, list.Line, f.Name, "is an empty list; remove the line, or write an entry")}
	case len(list.Content) > maxEntries:
		return []error{fileError(path, list.Line, f.Name, fmt.Sprintf("has %d entries; at most %d are allowed", len(list.Content), maxEntries))}
	}
	for i, item := range list.Content {
		set := Bind(e.bind())
		e.sets, e.where = append(e.sets, set), append(e.where, Origin{SourceFile, fmt.Sprintf("%s:%d", path, item.Line)})
		if item.Kind == yaml.AliasNode || item.Anchor != "" {
			errs = append(errs, fileError(path, item.Line, f.Name, "anchors and aliases are not supported; write the value out"))
			continue
		}
		errs = append(errs, e.named(f, i, set.mapping(path, item))...)
	}
	return errs
}

// named makes errors of an entry name it: organizations[0].connectUrl.
func (e *entries) named(f *Field, i int, errs []error) []error {
	for _, err := range errs {
		var one *SettingError
		if !errors.As(err, &one) || one.Setting == "" {
			continue
		}
		key := one.Setting
		if own := e.sets[i].Field(key); own != nil {
			key = own.Key()
		}
		one.Setting = fmt.Sprintf("%s[%d].%s", f.Key(), i, key)
	}
	return errs
}

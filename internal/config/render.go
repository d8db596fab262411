package config

import (
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Render writes the settings as a YAML file that Load reads, each with where
// its value came from. Secrets are masked, and only named in comments; settings
// without a value are left out unless all is set.
func (s *Set) Render(w io.Writer, all bool) error {
	root, notes := s.node(all)
	root.HeadComment = strings.Join(notes, "\n")
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("render settings: %w", err)
	}
	return enc.Close()
}

// node returns the settings as a mapping, and what is said of secrets.
func (s *Set) node(all bool) (root *yaml.Node, notes []string) {
	root = &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range s.list {
		switch {
		case f.Name == configName:
			continue
		case f.secret:
			if v := f.String(); v != "" {
				notes = append(notes, fmt.Sprintf("%s is %s, from %s", f.Name, v, f.origin))
			}
			continue
		case f.String() == "" && (!all || f.shape == shapeEntries):
			continue
		}
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: f.Key()}
		value := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: f.String(), LineComment: f.origin.String()}
		switch f.shape {
		case shapeText, shapeDuration:
		case shapeList:
			value = &yaml.Node{Kind: yaml.SequenceNode}
			key.LineComment = f.origin.String()
			for _, item := range f.items() {
				value.Content = append(value.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: item})
			}
			if len(value.Content) == 0 {
				value.Style = yaml.FlowStyle
			}
		case shapeBool:
			value.Tag = "!!bool"
		case shapeEntries:
			value = &yaml.Node{Kind: yaml.SequenceNode}
			key.LineComment = f.origin.String()
			for _, entry := range f.entries.sets {
				one, _ := entry.node(false) // entries have no secrets, only names of what holds them
				value.Content = append(value.Content, one)
			}
		}
		root.Content = append(root.Content, key, value)
	}
	return root, notes
}

// Values returns every setting by its YAML key as text, for JSON output and
// logs; secrets are masked.
func (s *Set) Values() map[string]string {
	all := make(map[string]string, len(s.list))
	for _, f := range s.list {
		key := f.Key()
		if key == "" {
			key = f.Name
		}
		all[key] = f.String()
	}
	return all
}

package kubeconfig

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"postern.dev/postern/internal/wire"
)

// value returns what a mapping has under a key, or nil.
func value(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// set puts a value into a mapping, in the place of what is there.
func set(m *yaml.Node, key string, v *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = v
			return
		}
	}
	m.Content = append(m.Content, text(m, key), v)
}

// drop removes a key from a mapping.
func drop(m *yaml.Node, key string) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content = slices.Delete(m.Content, i, i+2)
			return
		}
	}
}

// text returns a string in the style of the mapping that it is for: one that is JSON
// stays JSON.
func text(m *yaml.Node, s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if m.Style&yaml.FlowStyle != 0 {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// tree returns v as nodes, in the style of where they go.
func tree(where *yaml.Node, v any) (*yaml.Node, error) {
	n := &yaml.Node{}
	if err := n.Encode(v); err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	if where.Style&yaml.FlowStyle != 0 {
		likeJSON(n)
	}
	return n, nil
}

func likeJSON(n *yaml.Node) {
	n.Style = yaml.FlowStyle
	if n.Kind == yaml.ScalarNode {
		n.Style = 0
		if n.Tag == "!!str" {
			n.Style = yaml.DoubleQuotedStyle
		}
	}
	for _, c := range n.Content {
		likeJSON(c)
	}
}

// list returns one of the file's lists; with create one that is missing is made.
func (d *document) list(name string, create bool) (*yaml.Node, error) {
	n := value(d.root, name)
	switch {
	case n != nil && n.Kind == yaml.SequenceNode:
		if len(n.Content) == 0 {
			n.Style = d.root.Style // "[]" was no choice of style
		}
		return n, nil
	case n != nil && (n.Kind != yaml.ScalarNode || n.Tag != "!!null"):
		return nil, badFile("%s in line %d is no list", name, n.Line)
	case !create:
		return nil, nil //nolint:nilnil // there is none
	}
	n = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: d.root.Style}
	set(d.root, name, n)
	return n, nil
}

// find returns where the entry of a name is in a list; -1 if it is not there. As
// kubectl does, it takes the first.
func find(list *yaml.Node, name string) int {
	return slices.IndexFunc(list.Content, func(n *yaml.Node) bool {
		if n.Kind != yaml.MappingNode {
			return false
		}
		v := value(n, "name")
		return v != nil && v.Kind == yaml.ScalarNode && v.Value == name
	})
}

// ours reports whether an entry's body has our mark.
func ours(body *yaml.Node) bool {
	if body == nil || body.Kind != yaml.MappingNode {
		return false
	}
	marks := value(body, "extensions")
	return marks != nil && marks.Kind == yaml.SequenceNode && find(marks, marker) >= 0
}

// put makes or renews the entry of a name. Of one that is there, the keys of own are
// replaced and others stay; without own everything is replaced.
func (d *document) put(list, key, name string, body any, own []string, replace bool) error {
	all, err := d.list(list, true)
	if err != nil {
		return err
	}
	fresh, err := tree(all, body)
	if err != nil {
		return err
	}
	at := find(all, name)
	if at < 0 {
		entry := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Style: all.Style}
		set(entry, key, fresh)
		set(entry, "name", text(all, name))
		all.Content = append(all.Content, entry)
		return nil
	}
	entry := all.Content[at]
	old := value(entry, key)
	switch {
	case !ours(old) && !replace:
		return wire.Fail(wire.LegClient, wire.CodeBadRequest, "there is a %s %q that postern has not made, in line %d", key, name, entry.Line).
			WithHint("choose another name with --context-name, or replace it with --force")
	case !ours(old) || own == nil:
		set(entry, key, fresh)
		return nil
	}
	for _, k := range own {
		if v := value(fresh, k); v != nil {
			set(old, k, v)
		} else {
			drop(old, k)
		}
	}
	return nil
}

// remove removes our entry of a name.
func (d *document) remove(list, key, name string) (bool, error) {
	all, err := d.list(list, false)
	if err != nil || all == nil {
		return false, err
	}
	at := find(all, name)
	if at < 0 || !ours(value(all.Content[at], key)) {
		return false, nil
	}
	all.Content = slices.Delete(all.Content, at, at+1)
	if len(all.Content) == 0 {
		all.Style = yaml.FlowStyle // "[]"
	}
	return true, nil
}

// current returns the current context.
func (d *document) current() string {
	if n := value(d.root, currentContext); n != nil && n.Kind == yaml.ScalarNode && n.Tag != "!!null" {
		return n.Value
	}
	return ""
}

const currentContext = "current-context"

func (d *document) setCurrent(name string) {
	n := text(d.root, name)
	if name == "" {
		n.Style = yaml.DoubleQuotedStyle
	}
	set(d.root, currentContext, n)
}

// only reports whether a context is the only one.
func (d *document) only(name string) bool {
	all, err := d.list(contexts, false)
	return err == nil && all != nil && len(all.Content) == 1 && find(all, name) == 0
}

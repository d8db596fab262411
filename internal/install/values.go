package install

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Values are those that somebody gives to a chart. The zero value has none. They are not safe for
// concurrent use.
type Values struct{ given map[string]any }

// AddFile adds a file of values in YAML. What it says wins over what was given before.
func (v *Values) AddFile(text []byte) error {
	parsed, err := parseValues(text)
	if err != nil {
		return err
	}
	v.given = merge(v.given, parsed)
	return nil
}

// Set adds values as Helm's --set has them: a.b=c,d[0]=e,f={g,h}, where true, false, null and whole
// numbers are what they look like, and a backslash takes the meaning from what follows.
func (v *Values) Set(text string) error { return v.set(text, guess) }

// SetString is Set for values that are texts, whatever they look like.
func (v *Values) SetString(text string) error {
	return v.set(text, func(s string) any { return s })
}

// Put sets the value at a path of keys.
func (v *Values) Put(value any, keys ...string) {
	steps := make([]step, len(keys))
	for i, key := range keys {
		steps[i] = step{key: key}
	}
	v.put(steps, value)
}

func (v *Values) set(text string, read func(string) any) error {
	assignments, err := parseSet(text)
	if err != nil {
		return err
	}
	for _, a := range assignments {
		v.put(a.path, a.value(read))
	}
	return nil
}

func (v *Values) put(path []step, value any) {
	merged, _ := put(v.given, path, value).(map[string]any) // a path begins with a key
	v.given = merged
}

// put returns a tree with a value at a path.
func put(tree any, path []step, value any) any {
	if len(path) == 0 {
		return value
	}
	if path[0].key == "" {
		list, _ := tree.([]any)
		list = slices.Clone(list)
		for len(list) <= path[0].index {
			list = append(list, nil)
		}
		list[path[0].index] = put(list[path[0].index], path[1:], value)
		return list
	}
	table, _ := tree.(map[string]any)
	table = maps.Clone(table)
	if table == nil {
		table = make(map[string]any)
	}
	table[path[0].key] = put(table[path[0].key], path[1:], value)
	return table
}

// guess reads a value as what it looks like.
func guess(s string) any {
	switch s {
	case "true", "false":
		return s == "true"
	case "null":
		return nil
	case "0":
		return int64(0)
	}
	if !strings.HasPrefix(s, "0") {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
	}
	return s
}

// merge returns a table with what another says over it.
func merge(under, over map[string]any) map[string]any {
	out := maps.Clone(under)
	if out == nil {
		out = make(map[string]any, len(over))
	}
	for key, value := range over {
		below, isTable := value.(map[string]any)
		if before, wasTable := out[key].(map[string]any); isTable && wasTable {
			out[key] = merge(before, below)
			continue
		}
		out[key] = value
	}
	return out
}

// overDefaults returns a chart's values with those that were given over them. A null takes a
// default away. A single value cannot take the place of a table, nor the other way round.
func overDefaults(defaults, given map[string]any) (map[string]any, error) {
	out := make(map[string]any, len(defaults)+len(given))
	for key, value := range defaults {
		if value != nil {
			out[key] = value
		}
	}
	for key, value := range given {
		before, isTable := defaults[key].(map[string]any)
		after, stays := value.(map[string]any)
		switch {
		case value == nil:
			delete(out, key)
		case isTable && stays:
			below, err := overDefaults(before, after)
			if err != nil {
				return nil, fmt.Errorf("%s.%w", key, err)
			}
			out[key] = below
		case isTable:
			return nil, fmt.Errorf("%s: has values below it, such as %s.%s, and cannot be one value", key, key, anyKey(before))
		default:
			out[key] = value
		}
	}
	for key, value := range out {
		if table, ok := value.(map[string]any); ok && given[key] == nil {
			below, err := overDefaults(table, nil)
			if err != nil {
				return nil, err
			}
			out[key] = below
		}
	}
	return out, nil
}

// anyKey returns the first key of a table, for an example.
func anyKey(table map[string]any) string {
	keys := slices.Sorted(maps.Keys(table))
	if len(keys) == 0 {
		return "KEY"
	}
	return keys[0]
}

package config

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// EnvPrefix starts the name of every environment variable of Postern's own.
const EnvPrefix = "POSTERN_"

// Source says where the value of a setting came from. The order is the order
// of precedence.
type Source uint8

// The sources, weakest first.
const (
	SourceDefault Source = iota
	SourceContext
	SourceFile
	SourceEnv
	SourceFlag
)

// Origin is where the value of a setting came from, for people.
type Origin struct {
	Source Source
	Where  string // "flag --listen", "POSTERN_LISTEN", "hub.yaml:3"; empty for a default
}

// String returns where the value came from.
func (o Origin) String() string {
	if o.Source == SourceDefault {
		return "default"
	}
	return o.Where
}

// shape is what a setting looks like in a file.
type shape uint8

const (
	shapeText shape = iota
	shapeList
	shapeDuration
	shapeBool
	shapeEntries // a list of mappings, in a file only
)

// Field is one setting of a role, bound to its place in the role's struct. Its
// methods Set, String and Type make it a flag value (the interfaces of the
// packages flag and pflag).
type Field struct {
	Name    string   // the flag's name, from which Env and Key are derived: "connect-url"
	Usage   string   // one sentence for the help text
	Aliases []string // further environment variables, tried in this order after Env

	kind    string // what the value is, in the help text: "URL", "FILE"
	shape   shape
	secret  bool // taken from the environment only, and shown masked
	initial string
	origin  Origin

	set   func(text string) error // stores a value; appends it if the shape is a list
	clear func()                  // empties a list before the first value of a new source
	get   func() string           // the value as text that set reads
	items func() []string         // a list's values, as they are

	entries *entries // of shapeEntries
}

// Env returns the name of the environment variable that sets the field, or "" if
// only a file may set it.
func (f *Field) Env() string {
	if f.shape == shapeEntries {
		return ""
	}
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
}

// Key returns the field's key in a YAML file, or "" if a file may not set it.
func (f *Field) Key() string {
	if f.secret || f.Name == configName {
		return ""
	}
	words := strings.Split(f.Name, "-")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}

// OnCommandLine reports whether the field may be a flag; a secret and a list of
// mappings may not.
func (f *Field) OnCommandLine() bool { return !f.secret && f.shape != shapeEntries }

// IsBool reports whether the flag may stand without a value.
func (f *Field) IsBool() bool { return f.shape == shapeBool }

// Repeatable reports whether the field takes several values: a flag may be
// repeated, and values in the environment are separated by commas.
func (f *Field) Repeatable() bool { return f.shape == shapeList }

// Default returns the default as text; empty if there is none.
func (f *Field) Default() string { return f.initial }

// Origin returns where the current value came from.
func (f *Field) Origin() Origin { return f.origin }

// Type returns what kind of value the field takes, for the help text.
func (f *Field) Type() string { return f.kind }

// String returns the current value as text that Set reads. A secret is masked.
func (f *Field) String() string {
	if f == nil || f.get == nil { // the flag packages call String on zero values
		return ""
	}
	return f.get()
}

// Set stores a value from the command line. A list takes several values, in
// repeated calls or separated by commas.
func (f *Field) Set(text string) error {
	return f.store(text, Origin{SourceFlag, "flag --" + f.Name})
}

// store sets the field from text; for a list, split at commas.
func (f *Field) store(text string, from Origin) error {
	if f.shape != shapeList {
		return f.storeAll([]string{text}, from)
	}
	var values []string
	for v := range strings.SplitSeq(text, ",") {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	return f.storeAll(values, from)
}

// storeAll sets the field from values that are not split any further. Values of
// the same source add to a list; those of another source replace it.
func (f *Field) storeAll(values []string, from Origin) error {
	if f.origin.Source != from.Source && f.clear != nil {
		f.clear()
	}
	f.origin = from
	for _, v := range values {
		if err := f.set(v); err != nil {
			return err
		}
	}
	return nil
}

// text makes the field of a setting that is a text.
func text(name, kind string, p *string, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: kind,
		set: func(s string) error { *p = strings.TrimSpace(s); return nil },
		get: func() string { return *p },
	}
}

// link makes the field of a setting that is a URL which may carry a password.
func link(name string, p *string, usage string) *Field {
	f := text(name, "URL", p, usage)
	f.get = func() string { return redactURL(*p) }
	return f
}

// redactURL returns a URL without the password in it.
func redactURL(s string) string {
	if u, err := url.Parse(s); err == nil {
		if _, secret := u.User.Password(); !secret {
			return s
		}
		return u.Redacted()
	}
	if strings.Contains(s, "@") { // cannot be read, but somebody meant a password
		return mask
	}
	return s
}

// hidden makes the field of a setting that is itself a secret.
func hidden(name string, p *Secret, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: "SECRET", secret: true,
		set: func(s string) error { *p = Secret(strings.TrimSpace(s)); return nil },
		get: func() string { return p.String() },
	}
}

// list makes the field of a setting that takes several texts.
func list(name, kind string, p *[]string, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: kind, shape: shapeList,
		set:   func(s string) error { *p = append(*p, strings.TrimSpace(s)); return nil },
		clear: func() { *p = nil },
		get:   func() string { return strings.Join(*p, ",") },
		items: func() []string { return *p },
	}
}

// period makes the field of a setting that is a length of time.
func period(name string, p *time.Duration, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: "DURATION", shape: shapeDuration,
		set: func(s string) error {
			d, err := time.ParseDuration(strings.TrimSpace(s))
			if err != nil {
				return fmt.Errorf("%q is not a length of time: write a number with a unit, for example 30s, 5m or 1h", s)
			}
			*p = d
			return nil
		},
		get: func() string { return p.String() },
	}
}

// toggle makes the field of a setting that is on or off.
func toggle(name string, p *bool, usage string) *Field {
	return &Field{
		Name: name, Usage: usage, kind: "bool", shape: shapeBool,
		set: func(s string) error {
			b, err := strconv.ParseBool(strings.TrimSpace(s))
			if err != nil {
				return fmt.Errorf("%q is neither true nor false", s)
			}
			*p = b
			return nil
		},
		get: func() string { return strconv.FormatBool(*p) },
	}
}

// or adds further environment variables to a field.
func (f *Field) or(variables ...string) *Field {
	f.Aliases = append(f.Aliases, variables...)
	return f
}

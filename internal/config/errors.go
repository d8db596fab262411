package config

import (
	"errors"
	"fmt"
	"strings"
)

// SettingError says what is wrong with one setting, where its value came from
// and how to mend it. Set.Load returns all of them joined; find them with
// errors.As or List.
type SettingError struct {
	Setting string // the setting's name, "connect-url"; empty for trouble with the file itself
	Origin  Origin
	Problem string // what is wrong, with the value, never with a secret
	Mend    string // what to do; may be empty
}

// Error returns "connect-url (POSTERN_CONNECT_URL): problem; mend".
func (e *SettingError) Error() string {
	var b strings.Builder
	b.WriteString(e.Setting)
	if e.Origin.Source != SourceDefault {
		if e.Setting != "" {
			b.WriteString(" (" + e.Origin.Where + ")")
		} else {
			b.WriteString(e.Origin.Where)
		}
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	if e.Mend != "" {
		b.WriteString("; " + e.Mend)
	}
	return b.String()
}

// List returns the SettingErrors in err, which Set.Load returned.
func List(err error) []*SettingError {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*SettingError
		for _, e := range joined.Unwrap() {
			all = append(all, List(e)...)
		}
		return all
	}
	if one, ok := errors.AsType[*SettingError](err); ok {
		return []*SettingError{one}
	}
	return nil
}

// checker collects what is wrong with the settings of a Set.
type checker struct {
	set  *Set
	errs []error
}

// fail records a problem with a setting.
func (c *checker) fail(name, mend, format string, args ...any) {
	e := &SettingError{Setting: name, Problem: fmt.Sprintf(format, args...), Mend: mend}
	if f := c.set.Field(name); f != nil {
		e.Origin = f.origin
	}
	c.errs = append(c.errs, e)
}

// require records a problem if a setting has no value, and reports whether it has one.
func (c *checker) require(name, value string) bool {
	if value != "" {
		return true
	}
	f := c.set.Field(name)
	ways := f.Env()
	if f.OnCommandLine() {
		ways = "--" + f.Name + " or " + ways
	}
	if c.set.file != nil && f.Key() != "" {
		ways += " or " + f.Key() + " in the configuration file"
	}
	c.fail(name, "give it with "+ways, "is not set")
	return false
}

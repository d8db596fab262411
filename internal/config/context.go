package config

import (
	"net"
	"net/url"
	"strings"
)

// contextName is the name of the setting that names a context.
const contextName = "context"

// withContext are settings that a person's context may complete.
type withContext interface {
	// contextFields returns the setting that names the context, and the one that is
	// the address of the hub; nothing if contexts do not count.
	contextFields() (context, hub string)
}

// loadContext takes from a context what nothing else has set. A context is for one
// hub: where another one is given, nothing of it counts, least of all its tokens.
func (s *Set) loadContext(env Environment) error {
	settings, ok := s.settings.(withContext)
	if !ok {
		return nil
	}
	context, hub := settings.contextFields()
	if context == "" {
		return nil
	}
	which, address := s.Field(context), s.Field(hub)
	fail := func(problem, mend string) error {
		return &SettingError{Setting: context, Origin: which.origin, Problem: problem, Mend: mend}
	}
	var values map[string]string
	if env.Context != nil {
		var err error
		if values, err = env.Context(which.String()); err != nil {
			return fail(err.Error(), "")
		}
	}
	switch {
	case values == nil && which.String() != "":
		return fail("there are no contexts", "sign in with: postern login HUB")
	case values == nil:
		return nil
	case address.String() != "" && !SameHub(address.String(), values["hub"]):
		if which.String() != "" {
			return fail("it is for "+values["hub"]+", and "+hub+" is "+address.String(), "give one of the two")
		}
		return nil
	}
	from := Origin{SourceContext, "context " + values[contextName]}
	if s.Field("ca-file").String() != "" || s.Field("ca-pin").String() != "" {
		delete(values, "ca-file")
		delete(values, "ca-pin")
	}
	values[hub] = values["hub"]
	for _, f := range s.list {
		value := values[f.Name]
		if value == "" || f.origin.Source != SourceDefault {
			continue
		}
		if err := f.store(value, from); err != nil {
			return &SettingError{Setting: f.Name, Origin: from, Problem: err.Error()}
		}
	}
	return nil
}

// SameHub reports whether two addresses are of the same hub: the same host and port,
// whatever the scheme and path.
func SameHub(a, b string) bool { return hubAddress(a) == hubAddress(b) }

func hubAddress(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return s
	}
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "tls" {
			port = "4222"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

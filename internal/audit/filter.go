package audit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
)

// Filter says which records are wanted. Its zero value wants all; of several
// conditions each must hold.
type Filter struct {
	Since, Until time.Time
	Actions      []Action // any of them; Open and Close are of a Whole stream, too
	Actor        string   // KIND:NAME, or KIND: for all of a kind
	Agent        string
	Target       string // part of the target, the address or the object
	Stream       string // stream or trace ID
	Failed, OK   bool   // only those that failed, or that did not
}

// Match reports whether a record is wanted.
func (f *Filter) Match(r *Record) bool {
	switch {
	case !f.Since.IsZero() && r.Time.Before(f.Since), !f.Until.IsZero() && !r.Time.Before(f.Until),
		len(f.Actions) > 0 && !slices.ContainsFunc(f.Actions, r.Action.is),
		f.Actor != "" && r.Actor.String() != f.Actor && (!strings.HasSuffix(f.Actor, ":") || string(r.Actor.Kind)+":" != f.Actor),
		f.Agent != "" && r.Agent != f.Agent,
		f.Target != "" && !strings.Contains(r.Target, f.Target) && !strings.Contains(r.Address, f.Target) && !strings.Contains(r.Object, f.Target),
		f.Stream != "" && r.Stream != f.Stream && r.Trace != f.Stream,
		f.Failed && r.OK, f.OK && !r.OK:
		return false
	}
	return true
}

// is reports whether a record of action a is one of the action that is wanted.
func (a Action) is(wanted Action) bool {
	return a == wanted || a == Whole && (wanted == Open || wanted == Close)
}

// Parameters of a Filter, in URLs.
const (
	paramSince  = "since"
	paramUntil  = "until"
	paramAction = "action"
	paramActor  = "actor"
	paramAgent  = "agent"
	paramTarget = "target"
	paramStream = "stream"
	paramFailed = "failed"
	paramOK     = "ok"
)

// Values returns the filter as parameters of a URL.
func (f *Filter) Values() map[string][]string {
	v := make(map[string][]string)
	set := func(name, value string) {
		if value != "" {
			v[name] = []string{value}
		}
	}
	moment := func(name string, t time.Time) {
		if !t.IsZero() {
			v[name] = []string{t.UTC().Format(time.RFC3339Nano)}
		}
	}
	moment(paramSince, f.Since)
	moment(paramUntil, f.Until)
	for _, a := range f.Actions {
		v[paramAction] = append(v[paramAction], string(a))
	}
	set(paramActor, f.Actor)
	set(paramAgent, f.Agent)
	set(paramTarget, f.Target)
	set(paramStream, f.Stream)
	if f.Failed {
		set(paramFailed, "true")
	}
	if f.OK {
		set(paramOK, "true")
	}
	return v
}

// ParseFilter reads what Values wrote. Parameters that are not a filter's are
// ignored.
func ParseFilter(v map[string][]string) (Filter, error) {
	get := func(name string) string {
		if all := v[name]; len(all) > 0 {
			return all[0]
		}
		return ""
	}
	f := Filter{Agent: get(paramAgent), Target: get(paramTarget), Stream: get(paramStream)}
	for name, to := range map[string]*time.Time{paramSince: &f.Since, paramUntil: &f.Until} {
		if s := get(name); s != "" {
			t, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return f, fmt.Errorf("%s=%.60q is no time: want it as in RFC 3339", name, s)
			}
			*to = t
		}
	}
	for name, to := range map[string]*bool{paramFailed: &f.Failed, paramOK: &f.OK} {
		if s := get(name); s != "" {
			b, err := strconv.ParseBool(s)
			if err != nil {
				return f, fmt.Errorf("%s=%.60q is neither true nor false", name, s)
			}
			*to = b
		}
	}
	for _, s := range v[paramAction] {
		a, err := ParseAction(s)
		if err != nil {
			return f, err
		}
		f.Actions = append(f.Actions, a)
	}
	return f, f.actor(get(paramActor))
}

// ParseAction reads the name of an action.
func ParseAction(s string) (Action, error) {
	if a := Action(s); slices.Contains(Actions(), a) {
		return a, nil
	}
	names := make([]string, 0, len(Actions()))
	for _, a := range Actions() {
		names = append(names, string(a))
	}
	return "", fmt.Errorf("action %.60q: want one of %s", s, strings.Join(names, ", "))
}

// actor sets the actor that is wanted.
func (f *Filter) actor(s string) error {
	if s == "" {
		return nil
	}
	if kind, name, _ := strings.Cut(s, ":"); name != "" || !strings.HasSuffix(s, ":") || kind == "" {
		if _, err := identity.ParsePrincipal(s); err != nil {
			return err
		}
	}
	f.Actor = s
	return nil
}

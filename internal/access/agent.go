package access

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"postern.dev/postern/internal/identity"
)

// MaxLabels bounds the labels of one agent.
const MaxLabels = 32

// Agent is an agent as grants see it.
type Agent struct {
	ID     string
	Labels map[string]string
}

// The syntax of labels, a part of what Kubernetes allows.
var (
	labelKey   = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// ValidateLabel says whether a label can be had.
func ValidateLabel(key, value string) error {
	if !labelKey.MatchString(key) {
		return fmt.Errorf("label %.80q: want a key of 1 to 63 letters, digits, '-', '_', '.' and '/', with a letter or digit at both ends", key)
	}
	if !labelValue.MatchString(value) {
		return fmt.Errorf("label %s: want a value of 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, and not %.80q", key, value)
	}
	return nil
}

// ValidateLabels says whether an agent can have labels.
func ValidateLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%d labels; an agent has %d at most", len(labels), MaxLabels)
	}
	for k, v := range labels {
		if err := ValidateLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}

// FormatLabels returns labels as "k=v,k=v", by key.
func FormatLabels(labels map[string]string) string {
	keys := slices.Sorted(maps.Keys(labels))
	for i, k := range keys {
		keys[i] = k + "=" + labels[k]
	}
	return strings.Join(keys, ",")
}

// Selector chooses agents: all, one by its ID, or those that have all of some
// labels. The zero value chooses none.
type Selector struct {
	All    bool
	ID     string
	Labels map[string]string
}

// ParseSelector reads "*", ID, or KEY=VALUE[,KEY=VALUE…].
func ParseSelector(s string) (Selector, error) {
	switch {
	case s == "*":
		return Selector{All: true}, nil
	case !strings.Contains(s, "="):
		if err := identity.ValidateName("agent ID", s); err != nil {
			return Selector{}, fmt.Errorf("%w; or want KEY=VALUE for agents with a label, or * for all", err)
		}
		return Selector{ID: s}, nil
	}
	sel := Selector{Labels: make(map[string]string)}
	for pair := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(pair, "=")
		if err := ValidateLabel(key, value); err != nil {
			return Selector{}, err
		}
		if _, twice := sel.Labels[key]; twice {
			return Selector{}, fmt.Errorf("label %s is given twice, and an agent has it once", key)
		}
		sel.Labels[key] = value
	}
	return sel, ValidateLabels(sel.Labels)
}

// Chooses reports whether an agent is among those that are chosen.
func (s Selector) Chooses(a Agent) bool {
	switch {
	case s.All:
		return true
	case s.ID != "":
		return s.ID == a.ID
	}
	for k, v := range s.Labels {
		if have, ok := a.Labels[k]; !ok || have != v {
			return false
		}
	}
	return len(s.Labels) > 0
}

// IsZero reports whether it is the zero value.
func (s Selector) IsZero() bool { return !s.All && s.ID == "" && len(s.Labels) == 0 }

// String returns what ParseSelector reads; nothing for the zero value.
func (s Selector) String() string {
	switch {
	case s.All:
		return "*"
	case s.ID != "":
		return s.ID
	default:
		return FormatLabels(s.Labels)
	}
}

// MarshalText returns what String does, for JSON.
func (s Selector) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseSelector does, and nothing as the zero value.
func (s *Selector) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*s = Selector{}
		return nil
	}
	one, err := ParseSelector(string(b))
	if err == nil {
		*s = one
	}
	return err
}

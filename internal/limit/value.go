package limit

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Level is whose a limit is.
type Level uint8

// The levels, the widest first.
const (
	Organization Level = iota
	Agent
	Proxy
)

// Levels is the number of levels.
const Levels = 3

// String returns the level's name.
func (l Level) String() string {
	switch l {
	case Organization:
		return "organization"
	case Agent:
		return "agent"
	case Proxy:
		return "proxy"
	default:
		return "level-" + strconv.Itoa(int(l))
	}
}

// ParseLevel reads a level's name.
func ParseLevel(s string) (Level, error) {
	for l := range Level(Levels) {
		if s == l.String() {
			return l, nil
		}
	}
	return 0, fmt.Errorf("level %.60q: want organization, agent or proxy", s)
}

// Kind is what is limited.
type Kind uint8

// The kinds. Agents and Connections are an organization's only.
const (
	Streams     Kind = iota // streams at once
	Opens                   // streams opened per second
	Bytes                   // bytes per second, in both directions together
	Agents                  // agent IDs at once
	Connections             // connections to the bus at once
)

// Kinds is the number of kinds.
const Kinds = 5

// String returns the kind's name, which is also that of its flag.
func (k Kind) String() string {
	switch k {
	case Streams:
		return "streams"
	case Opens:
		return "opens-per-second"
	case Bytes:
		return "bytes-per-second"
	case Agents:
		return "agents"
	case Connections:
		return "connections"
	default:
		return "kind-" + strconv.Itoa(int(k))
	}
}

// ParseKind reads a kind's name.
func ParseKind(s string) (Kind, error) {
	names := make([]string, 0, Kinds)
	for k := range Kind(Kinds) {
		if s == k.String() {
			return k, nil
		}
		names = append(names, k.String())
	}
	return 0, fmt.Errorf("limit %.60q: want one of %s", s, strings.Join(names, ", "))
}

// Has reports whether parties of a level have limits of a kind.
func (l Level) Has(k Kind) bool { return k <= Bytes || l == Organization && k < Kinds }

// Value is a limit as people set it: a number, Unlimited, or Unset.
type Value int64

// The values that are no numbers.
const (
	Unset     Value = 0  // what holds otherwise: the hub's setting, or none
	Unlimited Value = -1 // no limit
)

const unlimited = "unlimited"

// Bounds of values. Fewer bytes per second would not leave room for the signs of
// life and handshakes of pipes.
const (
	maxValue = 1 << 50
	minBytes = 16 << 10
)

var errValue = errors.New(`want a whole number from 1 on, or "unlimited"`)

// ParseValue reads a limit of a kind: a number, or "unlimited". Bytes may have a
// unit: kB, MB, GB (powers of 1000) or KiB, MiB, GiB (of 1024).
func ParseValue(k Kind, s string) (Value, error) {
	s = strings.TrimSpace(s)
	if s == unlimited {
		return Unlimited, nil
	}
	scale := int64(1)
	if k == Bytes {
		for _, u := range units() {
			if number, ok := strings.CutSuffix(s, u.name); ok {
				s, scale = strings.TrimSpace(number), u.size
				break
			}
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || n > maxValue/scale {
		return Unset, fmt.Errorf("%s %.60q: %w", k, s, errValue)
	}
	v := Value(n * scale)
	return v, v.check(k)
}

type unit struct {
	name string
	size int64
}

// units returns the units of bytes, those first whose names end like others'.
func units() []unit {
	return []unit{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1},
	}
}

func (v Value) check(k Kind) error {
	switch {
	case v == Unset, v == Unlimited:
		return nil
	case v < 0 || v > maxValue:
		return fmt.Errorf("%s %d: %w", k, int64(v), errValue)
	case k == Bytes && v < minBytes:
		return fmt.Errorf("%s %d: at least %d, for pipes cannot live on less", k, int64(v), minBytes)
	}
	return nil
}

// Text returns the value as ParseValue reads it; "" for Unset.
func (v Value) Text(k Kind) string {
	switch v {
	case Unset:
		return ""
	case Unlimited:
		return unlimited
	}
	if k == Bytes {
		for _, u := range []unit{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
			if int64(v)%u.size == 0 {
				return strconv.FormatInt(int64(v)/u.size, 10) + u.name
			}
		}
	}
	return strconv.FormatInt(int64(v), 10)
}

// smaller returns the stricter of two values.
func (v Value) smaller(w Value) Value {
	if v <= 0 || w > 0 && w < v {
		return w
	}
	return v
}

// MarshalJSON writes a number or "unlimited".
func (v Value) MarshalJSON() ([]byte, error) {
	if v == Unlimited {
		return []byte(`"` + unlimited + `"`), nil
	}
	return strconv.AppendInt(nil, int64(v), 10), nil
}

// UnmarshalJSON reads a number or "unlimited". Whether the number is a sensible one
// says Limits.Check.
func (v *Value) UnmarshalJSON(b []byte) error {
	if string(b) == `"`+unlimited+`"` {
		*v = Unlimited
		return nil
	}
	var n int64
	if err := json.Unmarshal(b, &n); err != nil || n < 1 {
		return fmt.Errorf("limit %.60s: %w", b, errValue)
	}
	*v = Value(n)
	return nil
}

// Limits is the limits of one party. The zero value sets none.
type Limits struct {
	Streams     Value `json:"streams,omitempty"`
	Opens       Value `json:"opensPerSecond,omitempty"`
	Bytes       Value `json:"bytesPerSecond,omitempty"`
	Agents      Value `json:"agents,omitempty"`      // of an organization
	Connections Value `json:"connections,omitempty"` // of an organization
}

// at returns the field of a kind.
func (l *Limits) at(k Kind) *Value {
	switch k {
	case Streams:
		return &l.Streams
	case Opens:
		return &l.Opens
	case Bytes:
		return &l.Bytes
	case Agents:
		return &l.Agents
	default:
		return &l.Connections
	}
}

// Get returns the limit of a kind.
func (l Limits) Get(k Kind) Value { return *l.at(k) }

// With returns the limits with one changed.
func (l Limits) With(k Kind, v Value) Limits {
	*l.at(k) = v
	return l
}

// Or returns the limits with those that are unset taken from others.
func (l Limits) Or(others Limits) Limits {
	for k := range Kind(Kinds) {
		if l.Get(k) == Unset {
			*l.at(k) = others.Get(k)
		}
	}
	return l
}

// And returns limits of which each is the stricter of two.
func (l Limits) And(others Limits) Limits {
	for k := range Kind(Kinds) {
		*l.at(k) = l.Get(k).smaller(others.Get(k))
	}
	return l
}

// Check says why a party of a level cannot have these limits.
func (l Limits) Check(level Level) error {
	var errs []error
	for k := range Kind(Kinds) {
		v := l.Get(k)
		if v != Unset && !level.Has(k) {
			errs = append(errs, fmt.Errorf("%s: only an organization has this limit", k))
			continue
		}
		errs = append(errs, v.check(k))
	}
	return errors.Join(errs...)
}

// Table is the limits of each level.
type Table [Levels]Limits

// ParseSetting reads one setting of the form LEVEL.LIMIT=VALUE, such as
// "proxy.streams=100", into the table.
func (t *Table) ParseSetting(s string) error {
	name, text, ok := strings.Cut(s, "=")
	level, kind, dotted := strings.Cut(strings.TrimSpace(name), ".")
	if !ok || !dotted {
		return fmt.Errorf("%.100q: want LEVEL.LIMIT=VALUE, for example proxy.streams=100", s)
	}
	l, err := ParseLevel(level)
	if err != nil {
		return err
	}
	k, err := ParseKind(kind)
	if err != nil {
		return err
	}
	if !l.Has(k) {
		return fmt.Errorf("%s: only an organization has this limit", strings.TrimSpace(name))
	}
	v, err := ParseValue(k, text)
	if err != nil {
		return err
	}
	t[l] = t[l].With(k, v)
	return nil
}

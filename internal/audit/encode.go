package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxLine bounds an encoded entry, in bytes.
const MaxLine = 16 << 10

// ErrLine says that a line is no entry.
var ErrLine = errors.New("not an audit record")

// encoder writes an entry in its canonical form: a JSON object whose members are
// sorted by name, without white space, integers as digits, texts escaped as RFC 8785
// has it. There is one such form for what an entry says, whoever wrote it down.
type encoder struct{ b []byte }

func (e *encoder) key(name string) {
	if n := len(e.b); n > 0 && e.b[n-1] != '{' {
		e.b = append(e.b, ',')
	}
	e.b = append(append(append(e.b, '"'), name...), '"', ':')
}

func (e *encoder) text(name, value string) {
	if value != "" {
		e.always(name, value)
	}
}

func (e *encoder) always(name, value string) {
	e.key(name)
	e.b = appendText(e.b, value)
}

func (e *encoder) number(name string, value uint64) {
	if value != 0 {
		e.key(name)
		e.b = strconv.AppendUint(e.b, value, 10)
	}
}

func (e *encoder) moment(name string, t time.Time) {
	e.key(name)
	e.b = append(t.UTC().AppendFormat(append(e.b, '"'), time.RFC3339Nano), '"')
}

// appendRecord appends the canonical form of the record, within the braces of e.
// place holds the members of the chain; nil for a record that has no place yet.
func appendRecord(b []byte, r *Record, place *Entry) []byte {
	e := &encoder{append(b, '{')}
	e.always("action", string(r.Action))
	if r.Actor.Kind != "" {
		e.always("actor", r.Actor.String())
	}
	e.text("address", r.Address)
	e.text("agent", r.Agent)
	e.number("bytes_in", r.BytesIn)
	e.number("bytes_out", r.BytesOut)
	e.text("code", r.Code)
	e.number("count", r.Count)
	e.number("duration_ns", uint64(r.Duration)) //nolint:gosec // not negative: see clean
	e.always("id", r.ID)
	if place != nil {
		e.text("key", place.Key)
	}
	e.text("object", r.Object)
	e.key("ok")
	e.b = strconv.AppendBool(e.b, r.OK)
	e.always("organization", r.Organization)
	if place != nil {
		e.always("prev", place.Previous)
	}
	e.text("reason", r.Reason)
	if !r.Received.IsZero() {
		e.moment("received", r.Received)
	}
	e.text("replica", r.Replica)
	e.always("reporter", r.Reporter)
	if place != nil {
		e.number("seq", place.Sequence)
		e.text("signature", place.Signature)
	}
	e.text("source", r.Source)
	e.number("status", r.Status)
	e.text("stream", r.Stream)
	e.text("target", r.Target)
	e.text("through", r.Through)
	e.moment("time", r.Time)
	e.text("trace", r.Trace)
	e.text("user", r.User)
	e.text("what", r.What)
	return append(e.b, '}')
}

func appendText(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch at := strings.IndexByte("\b\t\n\f\r", c); {
		case c >= ' ':
			b = append(b, '\\', c)
		case at >= 0:
			b = append(b, '\\', "btnfr"[at])
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}

// member is one of an object's.
type member struct {
	name  string
	value any // string, bool or json.Number
}

// parseLine reads a flat JSON object. Members that this version does not know
// are members too: a chain that a newer hub wrote can be verified.
func parseLine(line []byte) ([]member, error) {
	if len(line) > MaxLine {
		return nil, fmt.Errorf("%w: it is %d bytes long", ErrLine, len(line))
	}
	if !utf8.Valid(line) {
		return nil, fmt.Errorf("%w: it is not UTF-8", ErrLine)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("%w: it is no JSON object", ErrLine)
	}
	var all []member
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLine, err)
		}
		value, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrLine, err)
		}
		switch v := value.(type) {
		case string, bool:
		case json.Number:
			if !isInteger(string(v)) {
				return nil, fmt.Errorf("%w: %s is no whole number", ErrLine, name)
			}
		default:
			return nil, fmt.Errorf("%w: %s is no text, number or truth value", ErrLine, name)
		}
		text, _ := name.(string) // a member's name always is
		all = append(all, member{text, value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLine, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the object", ErrLine)
	}
	slices.SortFunc(all, func(x, y member) int { return strings.Compare(x.name, y.name) })
	for i := range all[:max(len(all)-1, 0)] {
		if all[i].name == all[i+1].name {
			return nil, fmt.Errorf("%w: %s is there twice", ErrLine, all[i].name)
		}
	}
	return all, nil
}

func isInteger(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// canonical returns the canonical form of all members but the one named without.
func canonical(all []member, without string) []byte {
	e := &encoder{[]byte{'{'}}
	for _, m := range all {
		if m.name == without {
			continue
		}
		switch v := m.value.(type) {
		case string:
			e.always(m.name, v)
		case bool:
			e.key(m.name)
			e.b = strconv.AppendBool(e.b, v)
		case json.Number:
			e.key(m.name)
			e.b = append(e.b, v...)
		}
	}
	return append(e.b, '}')
}

// ParseEntry reads an entry's line. It does not verify it.
func ParseEntry(line []byte) (Entry, error) {
	var e Entry
	if _, err := parseLine(line); err != nil {
		return e, err
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return e, fmt.Errorf("%w: %w", ErrLine, err)
	}
	return e, nil
}

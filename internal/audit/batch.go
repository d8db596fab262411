package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"postern.dev/postern/internal/identity"
)

// lateness is how much later than it happened the hub may hear of something
// without its being noted; clocks differ that much.
const lateness = 10 * time.Second

// ErrBatch says that what an agent sent is no batch of records.
var ErrBatch = errors.New("not a batch of audit records")

// ParseBatch reads what a Spool sent, from the replica of an agent that the bus
// vouches for. What an agent may not say of itself is replaced or refused.
func ParseBatch(batch []byte, organization, agent, replica string, now time.Time) ([]Record, error) {
	text := string(batch) // the records' texts are parts of it
	all := make([]Record, 0, min(strings.Count(text, "\n")+1, maxBlock))
	var d decoder
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if len(all) >= maxBlock {
			return nil, fmt.Errorf("%w: more than %d records", ErrBatch, maxBlock)
		}
		// Not ParseEntry: what is kept is encoded anew, so it need not be canonical here.
		if len(line) > MaxLine {
			return nil, fmt.Errorf("%w: a record of %d bytes", ErrBatch, len(line))
		}
		all = append(all, Record{})
		r := &all[len(all)-1]
		if err := d.record(line, r); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBatch, err)
		}
		switch r.Action {
		case Open, Close, Whole, Change, Lost:
		default:
			return nil, fmt.Errorf("%w: an agent does not record %.40q", ErrBatch, r.Action)
		}
		if r.ID == "" || len(r.ID) > 64 {
			return nil, fmt.Errorf("%w: a record without an ID", ErrBatch)
		}
		r.Organization, r.Reporter, r.Agent, r.Replica = organization, ByAgent, agent, replica
		r.arrived(now)
	}
	return all, nil
}

// arrived sets what the hub knows of an agent's record better than the agent.
func (r *Record) arrived(now time.Time) {
	r.Received = time.Time{}
	told := r.Time // when the agent could tell of it
	if r.Action == Whole {
		told = told.Add(max(r.Duration, 0))
	}
	switch late := now.Sub(told); {
	case late < 0: // its clock is fast: nothing happened in the future
		if r.Time = r.Time.Add(late); late < -lateness {
			r.Received = now
		}
	case late > lateness:
		r.Received = now
	}
}

// decoder reads records as a Spool writes them: flat objects without white space,
// whose texts are plain. Anything else is left to encoding/json, which takes many times
// as long.
type decoder struct {
	rest  string
	actor string // that was read last, and what it says
	known identity.Principal
}

func (d *decoder) record(line string, r *Record) error {
	if d.rest = line; d.object(r) && d.rest == "" {
		return nil
	}
	*r = Record{}
	return json.Unmarshal([]byte(line), r)
}

// object reads an object; false means that it is not as a Spool writes it, or wrong.
func (d *decoder) object(r *Record) bool {
	if !d.take('{') {
		return false
	}
	for {
		name, ok := d.text()
		if !ok || !d.take(':') || !d.member(name, r) {
			return false
		}
		if !d.take(',') {
			return d.take('}')
		}
	}
}

// member reads the value of one member.
func (d *decoder) member(name string, r *Record) (ok bool) {
	switch name {
	case "ok":
		r.OK, ok = d.truth()
	case "bytes_in":
		r.BytesIn, ok = d.number()
	case "bytes_out":
		r.BytesOut, ok = d.number()
	case "count":
		r.Count, ok = d.number()
	case "duration_ns":
		var n uint64
		n, ok = d.number()
		r.Duration = time.Duration(n) //nolint:gosec // bounded by its number of digits
	case "time":
		r.Time, ok = d.moment()
	case "received":
		r.Received, ok = d.moment()
	case "actor":
		r.Actor, ok = d.principal()
	case "action":
		var s string
		s, ok = d.text()
		r.Action = Action(s)
	default:
		if to := r.textOf(name); to != nil {
			*to, ok = d.text()
		}
	}
	return ok
}

// textOf returns the text that a member is kept in, or nil if there is none.
func (r *Record) textOf(name string) *string {
	switch name {
	case "id":
		return &r.ID
	case "organization":
		return &r.Organization
	case "reporter":
		return &r.Reporter
	case "through":
		return &r.Through
	case "source":
		return &r.Source
	case "agent":
		return &r.Agent
	case "replica":
		return &r.Replica
	case "target":
		return &r.Target
	case "address":
		return &r.Address
	case "object":
		return &r.Object
	case "what":
		return &r.What
	case "code":
		return &r.Code
	case "reason":
		return &r.Reason
	case "stream":
		return &r.Stream
	case "trace":
		return &r.Trace
	}
	return nil
}

func (d *decoder) take(c byte) bool {
	if d.rest == "" || d.rest[0] != c {
		return false
	}
	d.rest = d.rest[1:]
	return true
}

func (d *decoder) text() (string, bool) {
	if !d.take('"') {
		return "", false
	}
	for i := range len(d.rest) {
		switch c := d.rest[i]; {
		case c == '"':
			s := d.rest[:i]
			d.rest = d.rest[i+1:]
			return s, true
		case c == '\\', c < ' ', c >= utf8.RuneSelf:
			return "", false
		}
	}
	return "", false
}

// number reads a whole number that fits into 63 bits, without looking closely: of
// 18 digits at most.
func (d *decoder) number() (uint64, bool) {
	n := len(d.rest) - len(strings.TrimLeft(d.rest, "0123456789"))
	if n == 0 || n > 18 || n > 1 && d.rest[0] == '0' {
		return 0, false
	}
	v, err := strconv.ParseUint(d.rest[:n], 10, 64)
	d.rest = d.rest[n:]
	return v, err == nil
}

func (d *decoder) truth() (value, ok bool) {
	if d.rest, ok = strings.CutPrefix(d.rest, "true"); ok {
		return true, true
	}
	d.rest, ok = strings.CutPrefix(d.rest, "false")
	return false, ok
}

func (d *decoder) moment() (time.Time, bool) {
	s, ok := d.text()
	if !ok {
		return time.Time{}, false
	}
	var t time.Time
	err := t.UnmarshalText([]byte(s))
	return t, err == nil
}

func (d *decoder) principal() (identity.Principal, bool) {
	s, ok := d.text()
	if ok && s != d.actor {
		var err error
		if d.known, err = identity.ParsePrincipal(s); err != nil {
			return identity.Principal{}, false
		}
		d.actor = s
	}
	return d.known, ok && s != ""
}

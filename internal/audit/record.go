// Package audit is the record of who did what: sign-ins, exchanges, refusals,
// opens and closes of streams, and every change. Parties and hubs make records; the
// hub keeps them, each organization's in a chain of its own that shows whether
// something in it was changed or taken out, and exports them.
//
// A Spool holds the records of an agent until the hub has them. A Keeper writes
// chains into a Journal, without ever making those wait who record. A Verifier
// checks a chain, an Exporter brings it to a Sink.
package audit

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// Action is what was done or tried.
type Action string

// The actions.
const (
	SignIn   Action = "sign-in"  // a person or administrator showed a credential to the hub, or to its own proxies
	Exchange Action = "exchange" // a secret for short-lived credentials
	Change   Action = "change"   // of anything that the hub or an agent keeps
	Read     Action = "read"     // of the audit log itself; and of anything, where it was refused
	Open     Action = "open"     // of a stream, or its refusal
	Close    Action = "close"    // of a stream
	Whole    Action = "stream"   // one that was short, from its opening, at Time, to its end in order
	Request  Action = "request"  // to a cluster through the gateway, or its refusal
	Revoke   Action = "revoke"   // of credentials, with the connections that were cut
	Start    Action = "start"    // of a hub
	Stop     Action = "stop"     // of a hub

	Checkpoint Action = "checkpoint" // a hub signed the chain up to here
	Lost       Action = "lost"       // Count records had no room and are not in the log
)

// Actions returns all actions.
func Actions() []Action {
	return []Action{SignIn, Exchange, Change, Read, Open, Close, Whole, Request, Revoke, Start, Stop, Checkpoint, Lost}
}

// The reporters: who saw what a record tells, and answers for it.
const (
	ByHub   = "hub"
	ByAgent = "agent"
)

// Record is one thing that happened. It holds no payload and no secret. The zero
// value of a field means that it does not apply or is not known.
type Record struct {
	ID           string             `json:"id"` // unique in its organization; a Keeper or Spool draws one if it is empty
	Time         time.Time          `json:"time"`
	Received     time.Time          `json:"received,omitzero"` // by the hub, where that was noticeably later
	Organization string             `json:"organization"`      // empty: the hub itself
	Reporter     string             `json:"reporter"`          // ByHub or ByAgent
	Action       Action             `json:"action"`
	Actor        identity.Principal `json:"actor,omitzero"`   // who acted
	Through      string             `json:"through,omitzero"` // the SPIFFE ID of the proxy that a stream came by
	Source       string             `json:"source,omitzero"`  // address from which it was done
	Agent        string             `json:"agent,omitzero"`
	Replica      string             `json:"replica,omitzero"`
	Target       string             `json:"target,omitzero"`  // of a stream, as the client named it
	Address      string             `json:"address,omitzero"` // that the target led to
	Object       string             `json:"object,omitzero"`  // what was changed or shown, such as "robot:ci" or "grant:7f3a"
	What         string             `json:"what,omitzero"`    // what was done to it
	OK           bool               `json:"ok"`
	Code         string             `json:"code,omitzero"`        // of a failure: wire.Code
	Reason       string             `json:"reason,omitzero"`      // for people: why it failed, or by which rule it was allowed
	BytesIn      uint64             `json:"bytes_in,omitzero"`    // of a stream: from the target
	BytesOut     uint64             `json:"bytes_out,omitzero"`   // of a stream: to the target
	Duration     time.Duration      `json:"duration_ns,omitzero"` // of a stream's life, or of the attempt to open it
	Stream       string             `json:"stream,omitzero"`      // stream ID
	Trace        string             `json:"trace,omitzero"`       // W3C trace ID
	User         string             `json:"user,omitzero"`        // whom the cluster saw, of a request
	Status       uint64             `json:"status,omitzero"`      // of the answer to a request; 0: there was none
	Count        uint64             `json:"count,omitzero"`       // how often, where one record stands for several; connections that were cut
}

// Entry is a record in its place in its organization's chain.
type Entry struct {
	Record
	Sequence  uint64 `json:"seq"`                // from 1 on, without a gap
	Previous  string `json:"prev"`               // Hash of the entry before; 64 zeros in the first
	Hash      string `json:"hash"`               // SHA-256 of this entry, see Seal
	Key       string `json:"key,omitzero"`       // of a checkpoint: ID of the key that signed it
	Signature string `json:"signature,omitzero"` // of a checkpoint
}

// Outcome notes whether what the record tells was done, or why not; leg is whose
// failure it is if the error does not say so.
func (r *Record) Outcome(err error, leg wire.Leg) {
	f := wire.AsFailure(err, leg)
	if r.OK = f == nil; !r.OK {
		r.Code, r.Reason = f.Code.String(), f.Leg.String()+": "+f.Text
	}
}

// Recorder takes records. Record does not block, keeps no reference that the caller
// may change, and may be called concurrently.
type Recorder interface {
	Record(r Record)
}

// Discard is a Recorder that forgets everything.
type Discard struct{}

// Record implements Recorder.
func (Discard) Record(Record) {}

// Limits of a record's texts, in bytes; longer ones are cut.
const (
	maxWord = 300
	maxText = 1024
)

// clean bounds the record's texts and takes out of them what could disturb a
// terminal or a log: they come from other machines.
func (r *Record) clean() {
	for _, s := range []*string{
		&r.ID, &r.Organization, &r.Reporter, (*string)(&r.Action), &r.Actor.Name, (*string)(&r.Actor.Kind), &r.Source,
		&r.Agent, &r.Replica, &r.Address, &r.What, &r.Code, &r.Stream, &r.Trace,
	} {
		*s = printable(*s, maxWord)
	}
	for _, s := range []*string{&r.Through, &r.Target, &r.Object, &r.Reason, &r.User} {
		*s = printable(*s, maxText)
	}
	r.Time, r.Received = r.Time.UTC().Round(0), r.Received.UTC().Round(0)
	if y := r.Time.Year(); y < 1 || y > 9999 { // no JSON holds it
		r.Time = time.Time{}
	}
	r.Duration = max(r.Duration, 0)
}

// printable returns at most limit bytes of s, with U+FFFD for what is not printable.
func printable(s string, limit int) string {
	if len(s) <= limit && plain(s) {
		return s
	}
	bad := func(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	s = strings.Map(func(c rune) rune {
		if bad(c) {
			return utf8.RuneError
		}
		return c
	}, s)
	if len(s) > limit { // three bytes may have come for one
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

// plain reports whether s is of printable ASCII characters only, as most texts are.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

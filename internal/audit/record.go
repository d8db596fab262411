// Package audit is the record of who did what: sign-ins, exchanges, refusals,
// opens and closes of streams, and every change. Parties and hubs make records; the
// hub keeps them.
package audit

import (
	"time"

	"postern.dev/postern/internal/identity"
)

// Action is what was done or tried.
type Action string

// The actions.
const (
	SignIn   Action = "sign-in"  // a person or administrator showed a credential to the hub
	Exchange Action = "exchange" // a secret for short-lived credentials
	Change   Action = "change"   // of anything that the hub keeps
	Open     Action = "open"     // of a stream, or its refusal
	Close    Action = "close"    // of a stream
	Revoke   Action = "revoke"   // of credentials, with the connections that were cut
)

// Record is one thing that happened. It holds no payload and no secret. The zero
// value of a field means that it does not apply or is not known.
type Record struct {
	Time         time.Time          `json:"time"`
	Organization string             `json:"organization"`
	Action       Action             `json:"action"`
	Actor        identity.Principal `json:"actor,omitzero"`   // who acted
	Through      string             `json:"through,omitzero"` // the SPIFFE ID of the proxy that a stream came by
	Source       string             `json:"source,omitzero"`  // address from which it was done
	Agent        string             `json:"agent,omitzero"`
	Replica      string             `json:"replica,omitzero"`
	Target       string             `json:"target,omitzero"`  // of a stream, as the client named it
	Address      string             `json:"address,omitzero"` // that the target led to
	Object       string             `json:"object,omitzero"`  // of a change: what was changed, such as "robot:ci" or "grant:7f3a"
	What         string             `json:"what,omitzero"`    // of a change: what was done to it
	OK           bool               `json:"ok"`
	Code         string             `json:"code,omitzero"`      // of a failure: wire.Code
	Reason       string             `json:"reason,omitzero"`    // for people: why it failed, or by which rule it was allowed
	BytesIn      uint64             `json:"bytes_in,omitzero"`  // of a stream: from the target
	BytesOut     uint64             `json:"bytes_out,omitzero"` // of a stream: to the target
	Duration     time.Duration      `json:"duration_ns,omitzero"`
	Stream       string             `json:"stream,omitzero"` // stream ID
	Trace        string             `json:"trace,omitzero"`  // W3C trace ID
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

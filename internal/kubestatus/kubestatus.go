// Package kubestatus tells what went wrong in the way of a Kubernetes API server: as a
// Status object, which kubectl and every client library show to people. Both ends of
// the gateway answer with it.
package kubestatus

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/wire"
)

// Status is an answer that something failed. Clients tell what to do by Code and
// Reason, people by Message.
type Status struct {
	Code       int           // of HTTP, 400 to 599
	Message    string        // for people; no secrets
	RetryAfter time.Duration // when to try again, rounded up to seconds; 0: does not say. Client libraries obey it
}

// Of returns the status for a failure. Its message begins with the leg that failed.
func Of(f *wire.Failure) Status {
	s := Status{Code: code(f), Message: f.Error()}
	switch f.Code { //nolint:exhaustive // the others need somebody to act first
	case wire.CodeOverloaded, wire.CodeDraining:
		s.RetryAfter = time.Second
	}
	return s
}

func code(f *wire.Failure) int {
	switch f.Code {
	case wire.CodeBadRequest:
		return http.StatusBadRequest
	case wire.CodeUnauthenticated:
		return http.StatusUnauthorized
	case wire.CodeDenied:
		return http.StatusForbidden
	case wire.CodeNameNotFound:
		return http.StatusNotFound
	case wire.CodeOverloaded:
		return http.StatusTooManyRequests
	case wire.CodeNoAgent, wire.CodeDraining:
		return http.StatusServiceUnavailable
	case wire.CodeTimeout:
		return http.StatusGatewayTimeout
	case wire.CodeNone, wire.CodeInternal:
		if f.Leg < wire.LegDNS { // one of ours
			return http.StatusInternalServerError
		}
	case wire.CodeNameFailed, wire.CodeRefused, wire.CodeUnreachable, wire.CodeReset, wire.CodeLost, wire.CodeCanceled,
		wire.CodeTicketUsed, wire.CodeTicketExpired, wire.CodeWrongPeer, wire.CodeProtocol:
	}
	return http.StatusBadGateway
}

// reason returns Kubernetes' word for a code; nothing if it has none.
func reason(code int) string {
	switch code {
	case http.StatusBadRequest:
		return "BadRequest"
	case http.StatusUnauthorized:
		return "Unauthorized"
	case http.StatusForbidden:
		return "Forbidden"
	case http.StatusNotFound:
		return "NotFound"
	case http.StatusMethodNotAllowed:
		return "MethodNotAllowed"
	case http.StatusRequestEntityTooLarge:
		return "RequestEntityTooLarge"
	case http.StatusTooManyRequests:
		return "TooManyRequests"
	case http.StatusInternalServerError:
		return "InternalError"
	case http.StatusServiceUnavailable:
		return "ServiceUnavailable"
	case http.StatusGatewayTimeout:
		return "Timeout"
	default:
		return ""
	}
}

// object is the JSON of meta/v1's Status.
type object struct {
	Kind       string   `json:"kind"`
	APIVersion string   `json:"apiVersion"`
	Metadata   struct{} `json:"metadata"`
	Status     string   `json:"status"`
	Message    string   `json:"message,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Details    *details `json:"details,omitempty"`
	Code       int      `json:"code"`
}

type details struct {
	RetryAfterSeconds int `json:"retryAfterSeconds"`
}

// Answer answers a request with the status: as an object, but for clients that ask what
// the API server has. Those of client-go read no object there, and tell people "unknown";
// text they show. What the handler has set beside is sent along; it must not have written
// yet.
func (s Status) Answer(w http.ResponseWriter, r *http.Request) {
	if !discovers(r) {
		s.write(w)
		return
	}
	s.retryAfter(w.Header())
	send(w, s.Code, "text/plain; charset=utf-8", []byte(s.Message))
}

// discovers reports whether a request is that of a client of Kubernetes that begins.
func discovers(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		if strings.Contains(accept, "g=apidiscovery.k8s.io") {
			return true
		}
	}
	return false
}

// retryAfter says when to try again, in seconds; 0 if it does not say.
func (s Status) retryAfter(h http.Header) int {
	if s.RetryAfter <= 0 {
		return 0
	}
	seconds := int((s.RetryAfter + time.Second - 1) / time.Second)
	h.Set("Retry-After", strconv.Itoa(seconds))
	return seconds
}

func send(w http.ResponseWriter, code int, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // a client that is gone does not need it
}

// write answers with the object.
func (s Status) write(w http.ResponseWriter) {
	o := object{Kind: "Status", APIVersion: "v1", Status: "Failure", Message: s.Message, Reason: reason(s.Code), Code: s.Code}
	if seconds := s.retryAfter(w.Header()); seconds > 0 {
		o.Details = &details{seconds}
	}
	body, _ := json.Marshal(o) // of texts and numbers: it cannot fail
	send(w, s.Code, "application/json", body)
}

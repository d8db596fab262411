package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"time"

	"postern.dev/postern/internal/wire"
)

// Problem is an error that the hub answered (RFC 9457), with members of ours.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"` // what went wrong, for people
	Hint   string `json:"hint,omitempty"`   // what to do about it
	Leg    string `json:"leg,omitempty"`
	Code   string `json:"code,omitempty"` // a wire.Code's name, or an error code of the token endpoint

	// HubTime is the hub's clock as it answered; zero if it did not say.
	HubTime time.Time `json:"-"`
	// RetryAfter is how long the hub asks to wait; zero if it did not say.
	RetryAfter time.Duration `json:"-"`
}

// Error returns the problem's text without its hint.
func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return fmt.Sprintf("%d %s", p.Status, p.Title)
}

// IsNotFound reports whether err is the hub's answer that something does not exist.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsExists reports whether err is the hub's answer that something exists already.
func IsExists(err error) bool { return hasStatus(err, http.StatusConflict) }

func hasStatus(err error, status int) bool {
	var p *Problem
	return errors.As(err, &p) && p.Status == status
}

// failure returns the problem as an error that names the leg.
func (p *Problem) failure() *wire.Failure {
	f := wire.Fail(wire.LegHub, codeOfStatus(p.Status), "%s", p.Error()).WithCause(p)
	f.Hint = p.Hint
	return f
}

// codeOfStatus returns what an HTTP status of the API means.
func codeOfStatus(status int) wire.Code {
	switch {
	case status == http.StatusUnauthorized:
		return wire.CodeUnauthenticated
	case status == http.StatusForbidden:
		return wire.CodeDenied
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return wire.CodeOverloaded
	case status == http.StatusRequestTimeout || status == http.StatusGatewayTimeout:
		return wire.CodeTimeout
	case status >= 400 && status < 500:
		return wire.CodeBadRequest
	default:
		return wire.CodeInternal
	}
}

// readProblem makes a Problem of an error response: of our two forms, or of
// whatever something between us and the hub answered.
func readProblem(res *http.Response, body []byte) *Problem {
	p := &Problem{}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	switch kind {
	case TypeProblem:
		_ = json.Unmarshal(body, p) // an unreadable body leaves the status to speak
	case TypeJSON:
		var e TokenError
		_ = json.Unmarshal(body, &e)
		*p = Problem{Detail: e.Description, Hint: e.Hint, Leg: e.Leg, Code: e.Code}
	default:
		p.Detail = fmt.Sprintf("the answer is %s and not a hub's", res.Status)
		p.Hint = "check that the URL is a hub's, and whether something between here and the hub answers in its place"
	}
	p.Status = res.StatusCode
	if p.Title == "" {
		p.Title = http.StatusText(res.StatusCode)
	}
	return p
}

// badURL is the failure for a base URL that no request can be made of.
func badURL(url string, err error) error {
	return wire.Fail(wire.LegHub, wire.CodeBadRequest, "address of the hub %q does not parse", url).WithCause(err).
		WithHint("want https://HOST[:PORT]")
}

// transportFailure names the leg when no answer came. The uplink's errors name it
// themselves.
func transportFailure(ctx context.Context, err error) error {
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		return f
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return wire.Fail(wire.LegHub, wire.CodeTimeout, "the hub did not answer in time").WithCause(err)
	case ctx.Err() != nil:
		return wire.Fail(wire.LegHub, wire.CodeCanceled, "request to the hub was canceled").WithCause(ctx.Err())
	default:
		return wire.Fail(wire.LegHub, wire.CodeLost, "request to the hub did not get through: %s", cause(err)).WithCause(err)
	}
}

// cause returns the innermost text of a url.Error, whose outer one repeats the URL.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

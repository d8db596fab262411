package hub

import (
	"context"
	"errors"
	"net/http"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/wire"
)

// problemOf returns how the API tells an error.
func problemOf(err error) *api.Problem {
	var (
		problem *api.Problem
		failure *wire.Failure
		name    *identity.NameError
		revoked *registry.RevokedError
	)
	p := &api.Problem{Detail: err.Error()}
	code := wire.CodeBadRequest
	switch {
	case errors.As(err, &problem):
		return problem
	case errors.As(err, &failure):
		p.Detail, p.Hint, p.Leg, code = failure.Text, failure.Hint, failure.Leg.String(), failure.Code
		p.Status = statusOfCode(code)
	case errors.As(err, &revoked):
		return partyRevoked(revoked)
	case errors.As(err, &name):
		p.Status, p.Detail = http.StatusBadRequest, name.Error()
	case errors.Is(err, registry.ErrTooLong), errors.Is(err, identity.ErrKeyRefused), errors.Is(err, registry.ErrLimit), errors.Is(err, registry.ErrPattern):
		p.Status = http.StatusBadRequest
	case errors.Is(err, registry.ErrNotFound):
		p.Status, p.Hint = http.StatusNotFound, "check the name, and the organization"
	case errors.Is(err, registry.ErrExists):
		p.Status, p.Hint = http.StatusConflict, "choose another name, or delete the one that exists"
	case errors.Is(err, registry.ErrConflict):
		p.Status, p.Hint = http.StatusConflict, "somebody else changed it at the same time; try again"
	case errors.Is(err, context.DeadlineExceeded):
		p.Status, p.Detail, code = http.StatusGatewayTimeout, "the hub did not manage in time", wire.CodeTimeout
	default:
		// What went wrong inside is for the hub's log, not for the caller.
		p.Status, p.Detail, code = http.StatusInternalServerError, "the hub failed", wire.CodeInternal
		p.Hint = "see the hub's log"
	}
	p.Code = code.String()
	return p
}

// statusOfCode returns the HTTP status that tells a code.
func statusOfCode(code wire.Code) int {
	switch code {
	case wire.CodeBadRequest:
		return http.StatusBadRequest
	case wire.CodeUnauthenticated:
		return http.StatusUnauthorized
	case wire.CodeDenied:
		return http.StatusForbidden
	case wire.CodeNoAgent:
		return http.StatusNotFound
	case wire.CodeOverloaded, wire.CodeDraining, wire.CodeLost:
		return http.StatusServiceUnavailable
	case wire.CodeTimeout:
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}

// clip shortens a text from outside, for logs and messages.
func clip(s string) string { return wire.Clip(s, 100) }

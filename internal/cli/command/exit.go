package command

import (
	"errors"
	"net/http"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/wire"
)

// The exit codes. They are part of what scripts rely on.
const (
	ExitOK          = 0
	ExitFailure     = 1
	ExitUsage       = 2
	ExitDenied      = 3
	ExitUnreachable = 4
	ExitCheck       = 5
	ExitNotFound    = 6
)

// ExitMeaning is an exit code with its meaning, for the reference.
type ExitMeaning struct {
	Code    int
	Meaning string
}

// ExitCodes returns all exit codes.
func ExitCodes() []ExitMeaning {
	return []ExitMeaning{
		{ExitOK, "Everything went well. A role that was stopped by SIGTERM or SIGINT ends with it too."},
		{ExitFailure, "Something failed that no other code tells."},
		{ExitUsage, "The command line, the settings or the input cannot be used: an unknown flag, a missing setting, a rule that does not parse."},
		{ExitDenied, "The credentials are missing, wrong, expired or revoked, or they do not allow what was asked for. `postern policy explain` or `postern access explain` found a target that is not allowed."},
		{ExitUnreachable, "The hub, the agent or the target could not be reached, or the hub could not be trusted. Trying again later may help."},
		{ExitCheck, "A check failed: `postern doctor` found a broken leg."},
		{ExitNotFound, "What was named does not exist: an agent, a robot, a token, an organization."},
	}
}

// UsageError is a command line that cannot be used.
type UsageError struct{ Err error }

// Error returns the text of what is wrong.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *UsageError) Unwrap() error { return e.Err }

// CheckError says that a check that was asked for failed; what exactly has been
// told already.
type CheckError struct{ Text string }

// Error returns a summary.
func (e *CheckError) Error() string { return e.Text }

// ExitCode returns the exit code for an error.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[*ExitError](err); ok {
		return e.Code
	}
	if _, ok := errors.AsType[*UsageError](err); ok || len(config.List(err)) > 0 {
		return ExitUsage
	}
	if _, ok := errors.AsType[*CheckError](err); ok {
		return ExitCheck
	}
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusNotFound {
		return ExitNotFound
	}
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		return exitOfFailure(f)
	}
	return ExitFailure
}

func exitOfFailure(f *wire.Failure) int {
	switch f.Code {
	case wire.CodeBadRequest:
		return ExitUsage
	case wire.CodeUnauthenticated, wire.CodeDenied:
		return ExitDenied
	case wire.CodeNoAgent, wire.CodeOverloaded, wire.CodeDraining, wire.CodeTimeout, wire.CodeNameNotFound, wire.CodeNameFailed,
		wire.CodeRefused, wire.CodeUnreachable, wire.CodeReset, wire.CodeLost, wire.CodeWrongPeer:
		return ExitUnreachable
	default:
		return ExitFailure
	}
}

// ExitError carries the exit code of a program that was run on behalf of the
// user. It is not reported, because that program has told already.
type ExitError struct {
	Code int
	Err  error
}

// Error returns what the program ended with.
func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap returns the error of running the program.
func (e *ExitError) Unwrap() error { return e.Err }

// Package doctor finds out which part of the road from a client to a target is
// broken, and says what to do about it. It walks the legs one after another, in
// the order in which a connection travels, for the person who runs `postern
// doctor`.
//
// Walk and Report know nothing of networks; Steps makes the steps from a few
// small interfaces (Road, Hub, Tunnel), which the command fills with the real
// things and a test with others.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"postern.dev/postern/internal/wire"
)

// Status is the outcome of a step.
type Status string

// The outcomes.
const (
	Pass Status = "pass"
	Warn Status = "warn" // works, but not as it should
	Fail Status = "fail"
	Skip Status = "skip" // was not tried, Detail says why
)

// Finding is what a step found out.
type Finding struct {
	Status Status
	Detail string // what was seen, with names, addresses and times
	Action string // what to do about it; empty unless Warn or Fail
}

// Result is the finding of one step, for people and programs.
type Result struct {
	Leg      string        `json:"leg"`
	Status   Status        `json:"status"`
	Detail   string        `json:"detail"`
	Action   string        `json:"action,omitempty"`
	Duration time.Duration `json:"durationNanoseconds"`
}

// Step is one thing to check.
type Step struct {
	Leg   string        // its name, unique
	Needs []string      // legs that must not have failed before
	Limit time.Duration // for Run; 0 means stepLimit
	Run   func(ctx context.Context) Finding
}

// stepLimit bounds a step that has no limit of its own.
const stepLimit = 20 * time.Second

// Walk runs the steps in order and returns a result for each. A step that needs
// one that failed or was skipped for that reason is skipped. observe, if it is
// not nil, is called with each result as it comes.
func Walk(ctx context.Context, steps []Step, observe func(Result)) Report {
	var report Report
	blocked := map[string]string{} // leg: the leg that failed and keeps others from being tried
	for _, s := range steps {
		r := Result{Leg: s.Leg}
		if i := slices.IndexFunc(s.Needs, func(leg string) bool { return blocked[leg] != "" }); i >= 0 {
			cause := blocked[s.Needs[i]]
			blocked[s.Leg] = cause
			r.Status, r.Detail = Skip, fmt.Sprintf("not tried, because %s failed", cause)
		} else {
			begin := time.Now()
			f := run(ctx, s)
			r.Status, r.Detail, r.Action, r.Duration = f.Status, f.Detail, f.Action, time.Since(begin)
			if f.Status == Fail {
				blocked[s.Leg] = s.Leg
			}
		}
		report.Results = append(report.Results, r)
		if observe != nil {
			observe(r)
		}
	}
	return report
}

func run(ctx context.Context, s Step) Finding {
	limit := s.Limit
	if limit == 0 {
		limit = stepLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.Run(ctx)
}

// passed is the finding of a step that went well.
func passed(format string, args ...any) Finding {
	return Finding{Status: Pass, Detail: fmt.Sprintf(format, args...)}
}

// skipped is the finding of a step that does not apply.
func skipped(format string, args ...any) Finding {
	return Finding{Status: Skip, Detail: fmt.Sprintf(format, args...)}
}

// failed turns an error into a finding. A wire.Failure brings its own advice;
// otherwise action is given.
func failed(err error, action string) Finding {
	var f *wire.Failure
	if !errors.As(err, &f) {
		return Finding{Status: Fail, Detail: err.Error(), Action: action}
	}
	detail := f.Text
	if detail == "" {
		detail = f.Leg.String() + ": " + f.Code.String()
	}
	if f.Hint != "" {
		action = f.Hint
	}
	return Finding{Status: Fail, Detail: detail, Action: action}
}

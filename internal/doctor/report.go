package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Report is the outcome of a walk.
type Report struct {
	Results []Result `json:"results"`
}

// OK reports whether no step failed.
func (r Report) OK() bool { return r.Failed() == "" }

// Failed returns the first leg that failed, or "".
func (r Report) Failed() string {
	for _, result := range r.Results {
		if result.Status == Fail {
			return result.Leg
		}
	}
	return ""
}

// WriteJSON writes the report for programs.
func (r Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(struct {
		OK bool `json:"ok"`
		Report
	}{r.OK(), r}); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// legWidth is the length of the longest leg's name.
const legWidth = len(legCredentials)

// WriteLine writes one result for people: the leg, the status, what was seen
// and, in a line of its own, what to do.
func (r Result) WriteLine(w io.Writer) {
	took := ""
	if r.Duration >= time.Millisecond {
		took = fmt.Sprintf(" (%v)", r.Duration.Round(time.Millisecond))
	}
	fmt.Fprintf(w, "%-*s  %-4s  %s%s\n", legWidth, r.Leg, r.Status, r.Detail, took)
	if r.Action != "" {
		fmt.Fprintf(w, "%s-> %s\n", strings.Repeat(" ", legWidth+2+4+2), r.Action)
	}
}

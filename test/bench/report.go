package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// result collects the samples and judges them.
type result struct {
	Machine  machine   `json:"machine"`
	Started  time.Time `json:"started"`
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"seconds"` // of one sample
	Metrics  []*metric `json:"metrics"`
	Goals    []verdict `json:"goals"`
	Failures []string  `json:"failures"`
}

// machine says where the figures come from.
type machine struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
}

// metric is a row of the report.
type metric struct {
	Name    string               `json:"name"`
	Unit    string               `json:"unit"`
	Medians map[string]float64   `json:"medians"`
	Samples map[string]samples   `json:"-"` // by contender; with NaN for what failed
	Values  map[string][]float64 `json:"samples"`
}

// unit says how a metric's values are written.
type unit struct {
	name   string
	digits int
}

// unitOf returns the unit of a metric by its name, without a process in
// parentheses.
func unitOf(name string) unit {
	if i := strings.LastIndex(name, " ("); i >= 0 {
		name = name[:i]
	}
	switch name {
	case mEchoP50, mEchoP99:
		return unit{"ms", 3}
	case mBusyP50, mBusyP99:
		return unit{"ms", 2}
	case mSharedP50, mSharedP99:
		return unit{"ms", 1}
	case mOpens16, mOpens1:
		return unit{"/s", 0}
	case mStalledRatio:
		return unit{"×", 2}
	case mCPUDown, mCPUUp:
		return unit{"s/GB", 2}
	case mCPUOpen, mCPUGet, mCPUOwn, mCPUExec:
		return unit{"µs", 0}
	case mIdle, mWatching:
		return unit{"KiB", 1}
	case mLists, mListsGzip, mRealGets, mRealExecs:
		return unit{"/s", 2}
	case mKubectls, mExecs, mEvents:
		return unit{"/s", 0}
	case mGetP50, mGetP99, mEventP99:
		return unit{"ms", 2}
	default:
		return unit{"MB/s", 0}
	}
}

// goal is a threshold of the project. Ratios are to the reference in the same
// run; with no reference the value itself is compared.
type goal struct {
	metric    string
	reference string
	atLeast   bool // otherwise: at most
	hub       float64
	separate  float64
	gateway   float64
	above     bool // not the ratio to the reference counts, but how far above it the value is
}

var goals = []goal{
	{metric: mDownload, reference: "yamux", atLeast: true, hub: 1.5, separate: 1.2},
	{metric: mUpload, reference: "yamux", atLeast: true, hub: 1.5, separate: 1.2},
	{metric: mEight, reference: "yamux", atLeast: true, hub: 1.5, separate: 1.2},
	{metric: mEchoP50, reference: "yamux", hub: 1, separate: 1.25},
	{metric: mOpens16, reference: "yamux", atLeast: true, hub: 1.5, separate: 1.2},
	{metric: mStalledRatio, atLeast: true, hub: 0.95, separate: 0.95},
	{metric: mFarDown, reference: "direct", atLeast: true, hub: 0.9, separate: 0.9},
	{metric: mFarUp, reference: "direct", atLeast: true, hub: 0.9, separate: 0.9},
	{metric: mSharedP99, reference: "direct", hub: 1.3, separate: 1.3},
	{metric: mIdle, hub: 40, separate: 40},
	{metric: mLists, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mListsGzip, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mGetP99, reference: "api", gateway: 1.5, above: true},
	{metric: mKubectls, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mExecs, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mRealGets, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mRealExecs, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mEvents, reference: "api", atLeast: true, gateway: 0.8},
	{metric: mWatching, gateway: 64},
}

// verdict is a goal held against what was measured.
type verdict struct {
	Metric    string  `json:"metric"`
	Contender string  `json:"contender"`
	Reference string  `json:"reference"` // empty when the value itself is compared
	Got       float64 `json:"got"`
	Goal      float64 `json:"goal"`
	AtLeast   bool    `json:"atLeast"`
	Above     bool    `json:"above,omitempty"` // got and goal are a difference to the reference
	Met       bool    `json:"met"`
}

func newResult(o options) *result {
	return &result{
		Started: time.Now(), Rounds: o.rounds, Seconds: o.sample.Seconds(),
		Machine: machine{processor(), runtime.NumCPU(), kernel(), runtime.Version()},
	}
}

func (r *result) add(name, contender string, round int, v float64) {
	m := r.find(name)
	if m == nil {
		m = &metric{Name: name, Unit: unitOf(name).name, Samples: make(map[string]samples)}
		r.Metrics = append(r.Metrics, m)
	}
	s := m.Samples[contender]
	for len(s) < round {
		s = append(s, math.NaN())
	}
	m.Samples[contender] = append(s, v)
}

func (r *result) fail(figure, contender string, round int, err error) {
	r.Failures = append(r.Failures, fmt.Sprintf("%s, %s, round %d: %v", figure, contender, round+1, err))
}

func (r *result) find(name string) *metric {
	for _, m := range r.Metrics {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// judge computes medians and verdicts. A metric of processes is judged by the
// process that is worst.
func (r *result) judge() {
	for _, m := range r.Metrics {
		m.Medians, m.Values = make(map[string]float64), make(map[string][]float64)
		for c, s := range m.Samples {
			if len(s.good()) > 0 {
				m.Medians[c], m.Values[c] = s.median(), s.good()
			}
		}
	}
	for _, g := range goals {
		for _, m := range r.Metrics {
			if m.Name != g.metric && !strings.HasPrefix(m.Name, g.metric+" (") {
				continue
			}
			r.hold(g, m, "hub", g.hub)
			r.hold(g, m, "separate", g.separate)
			r.hold(g, m, "gateway", g.gateway)
		}
	}
}

func (r *result) hold(g goal, m *metric, contender string, threshold float64) {
	s := m.Samples[contender]
	switch {
	case g.above:
		s = s.less(m.Samples[g.reference])
	case g.reference != "":
		s = s.over(m.Samples[g.reference])
	}
	if len(s.good()) == 0 {
		return
	}
	v := verdict{
		Metric: m.Name, Contender: contender, Reference: g.reference,
		Got: s.median(), Goal: threshold, AtLeast: g.atLeast, Above: g.above,
	}
	v.Met = v.Got <= v.Goal
	if g.atLeast {
		v.Met = v.Got >= v.Goal
	}
	r.Goals = append(r.Goals, v)
}

// short returns how many goals were missed.
func (r *result) short() int {
	n := 0
	for _, v := range r.Goals {
		if !v.Met {
			n++
		}
	}
	return n
}

func (r *result) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// writeTables prints the figures and the goals as tables that read well in a
// terminal and as Markdown.
func (r *result) writeTables(w io.Writer) error {
	fmt.Fprintf(w, "\n%s, %d cores, Linux %s, %s; median of %d samples of %g s each\n\n",
		r.Machine.Processor, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go, r.Rounds, r.Seconds)
	var columns []contender
	for _, c := range contenders {
		if slices.ContainsFunc(r.Metrics, func(m *metric) bool { _, ok := m.Medians[c.name]; return ok }) {
			columns = append(columns, c)
		}
	}
	table := [][]string{{"figure", "unit"}}
	for _, c := range columns {
		table[0] = append(table[0], c.title)
	}
	for _, m := range r.Metrics {
		u := unitOf(m.Name)
		row := []string{m.Name, u.name}
		for _, c := range columns {
			cell := ""
			if v, ok := m.Medians[c.name]; ok {
				cell = fmt.Sprintf("%.*f", u.digits, v)
			}
			row = append(row, cell)
		}
		table = append(table, row)
	}
	writeTable(w, table)
	if len(r.Goals) > 0 {
		fmt.Fprintln(w)
		writeTable(w, r.goalTable())
		fmt.Fprintf(w, "\n%d of %d goals met\n", len(r.Goals)-r.short(), len(r.Goals))
	}
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAILED:", f)
	}
	return nil
}

func (r *result) goalTable() [][]string {
	table := [][]string{{"goal", "who", "measured", "wanted", ""}}
	for _, v := range r.Goals {
		of, sign, mark := "", "≤", "pass"
		switch {
		case v.Above:
			of = " above " + v.Reference
		case v.Reference != "":
			of = " × " + v.Reference
		}
		if v.AtLeast {
			sign = "≥"
		}
		if !v.Met {
			mark = fmt.Sprintf("SHORT by %.0f %%", 100*math.Abs(v.Got-v.Goal)/v.Goal)
		}
		table = append(table, []string{
			v.Metric, v.Contender, fmt.Sprintf("%.2f%s", v.Got, of), fmt.Sprintf("%s %g", sign, v.Goal), mark,
		})
	}
	return table
}

// writeTable prints rows as an aligned Markdown table; the first row is its head.
func writeTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			fill := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i == 0 {
				fmt.Fprintf(w, "| %s%s ", cell, fill)
			} else {
				fmt.Fprintf(w, "| %s%s ", fill, cell)
			}
		}
		fmt.Fprintln(w, "|")
		if n == 0 {
			for i := range row {
				dashes := strings.Repeat("-", widths[i]+1)
				if i == 0 {
					fmt.Fprintf(w, "| %s", dashes)
				} else {
					fmt.Fprintf(w, "|%s:", strings.Repeat("-", widths[i]+1))
				}
			}
			fmt.Fprintln(w, "|")
		}
	}
}

// processor returns the model name of the first processor.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(rest, " \t:"))
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}

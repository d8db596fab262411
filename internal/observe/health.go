package observe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// checkTimeout bounds one check; probes give up after a second or ten.
	checkTimeout = 5 * time.Second
	// checkMaxAge is how long a result is reused, so that whoever can reach the
	// port cannot make the data path busy.
	checkMaxAge = time.Second
)

// Check proves that one thing works. It returns nil or says what is wrong, and
// returns soon after ctx ends.
type Check func(ctx context.Context) error

// CheckResult is the outcome of one check.
type CheckResult struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Detail   string `json:"detail,omitempty"`
	Duration string `json:"duration"`
}

// Readiness is the outcome of all checks.
type Readiness struct {
	Organization string        `json:"organization,omitempty"` // in Organizations only
	Ready        bool          `json:"ready"`
	Starting     bool          `json:"starting,omitempty"`
	Draining     bool          `json:"draining,omitempty"`
	Checks       []CheckResult `json:"checks"`

	// Organizations are those of a process that serves several.
	Organizations []Readiness `json:"organizations,omitempty"`
}

// Health answers whether a process is alive and whether it is ready for work.
// It is safe for concurrent use.
type Health struct {
	mu       sync.Mutex
	names    []string
	checks   map[string]Check
	draining bool
	parts    []part

	turn   chan struct{} // held by the one who runs the checks
	last   []CheckResult
	lastAt time.Time
}

// NewHealth returns a Health without checks. Until the first is registered, the
// process counts as starting: what it is there for does not work yet.
func NewHealth() *Health {
	return &Health{checks: make(map[string]Check), turn: make(chan struct{}, 1)}
}

// Register adds a check, or replaces the one of that name.
func (h *Health) Register(name string, c Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.checks[name]; !known {
		h.names = append(h.names, name)
	}
	h.checks[name] = c
	h.lastAt = time.Time{}
}

// Unregister removes checks.
func (h *Health) Unregister(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		delete(h.checks, name)
	}
	h.names = slices.DeleteFunc(h.names, func(name string) bool { return h.checks[name] == nil })
	h.lastAt = time.Time{}
}

// Drain makes the process count as not ready from now on: it is stopping.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// Ready runs the checks, all at once, and waits for them. A result that is less
// than a second old is reused. A process that serves several organizations is ready
// when any of them is.
func (h *Health) Ready(ctx context.Context) Readiness {
	if parts := h.organizations(); len(parts) > 0 {
		return h.several(ctx, parts)
	}
	return h.one(ctx)
}

// one is the outcome of the checks of h itself.
func (h *Health) one(ctx context.Context) Readiness {
	results := h.results(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	starting := len(results) == 0
	r := Readiness{Ready: !h.draining && !starting, Starting: starting, Draining: h.draining, Checks: results}
	for _, c := range results {
		r.Ready = r.Ready && c.OK
	}
	return r
}

func (h *Health) results(ctx context.Context) []CheckResult {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return []CheckResult{{Name: "checks", Detail: "gave up waiting: " + ctx.Err().Error()}}
	}
	h.mu.Lock()
	if !h.lastAt.IsZero() && time.Since(h.lastAt) < checkMaxAge {
		defer h.mu.Unlock()
		return h.last
	}
	results := make([]CheckResult, len(h.names))
	checks := make([]Check, len(h.names))
	for i, name := range h.names {
		results[i].Name, checks[i] = name, h.checks[name]
	}
	h.mu.Unlock()

	// One caller's impatience must not become everybody's result.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() {
			begin := time.Now()
			err := check(ctx)
			results[i].OK = err == nil
			results[i].Duration = short(time.Since(begin)).String()
			if err != nil {
				results[i].Detail = err.Error()
			}
		})
	}
	wg.Wait()

	h.mu.Lock()
	defer h.mu.Unlock()
	if changed := slices.CompareFunc(results, h.names, func(r CheckResult, name string) int { return strings.Compare(r.Name, name) }); changed == 0 {
		h.last, h.lastAt = results, time.Now()
	}
	return results
}

// Handler serves /healthz, which answers 200 while the process can answer at
// all, and /readyz, which answers 200 or 503 with a Readiness as JSON. Of a process
// that serves several organizations, /readyz?organization=NAME asks for one, and
// /readyz?all wants all of them ready.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ready, known := h.asked(r)
		if !known {
			http.Error(w, "this process serves no such organization, or only one", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !ready.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(ready) // the client is gone: there is nobody to tell
	})
	return mux
}

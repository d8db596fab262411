package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Metrics is the address of a process's metrics and health endpoint.
type Metrics string

var metricsClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// WaitReady waits until /readyz answers 200.
func (m Metrics) WaitReady(t testing.TB, p *Process, timeout time.Duration) time.Duration {
	t.Helper()
	return Eventually(t, timeout, p.Name+" is ready", func() error {
		if !p.Running() {
			return Permanent(fmt.Errorf("it ended: %w\n%s", p.err, p.log.tail(20)))
		}
		return m.Ready()
	})
}

// Ready returns nil if /readyz answers 200, otherwise what it says.
func (m Metrics) Ready() error {
	status, body, err := m.get("/readyz")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("/readyz: %d %s", status, strings.TrimSpace(body))
	}
	return nil
}

// Value returns the sum of a metric over all its label values.
func (m Metrics) Value(name string) (float64, error) {
	_, body, err := m.get("/metrics")
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	scanner := bufio.NewScanner(strings.NewReader(body))
	for scanner.Scan() {
		line := scanner.Text()
		rest, ok := strings.CutPrefix(line, name)
		if !ok || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %q: %w", line, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, errors.New("no metric " + name)
	}
	return sum, scanner.Err()
}

func (m Metrics) get(path string) (status int, body string, err error) {
	resp, err := metricsClient.Get("http://" + string(m) + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return resp.StatusCode, string(text), err
}

// Usage is what a process holds.
type Usage struct {
	Pipes      int // descriptors of kernel pipes
	FDs        int // all other descriptors
	Goroutines int
}

// sparePipes is how many kernel pipes a relay may keep for later, two
// descriptors each.
const sparePipes = 64

// Usage reads what the process behind the endpoint holds.
func (m Metrics) Usage(p *Process) (Usage, error) {
	goroutines, err := m.Value("go_goroutines")
	if err != nil {
		return Usage{}, err
	}
	pipes, fds, err := p.FDs()
	return Usage{Pipes: pipes, FDs: fds, Goroutines: int(goroutines)}, err
}

// Watched is a process with an endpoint.
type Watched struct {
	*Process
	Metrics Metrics
}

// LeakCheck remembers what processes hold now; the returned function waits
// until none holds notably more. Warm pipes and idle connections come and go,
// so slack allows for a few of them; a leak per stream shows when the test opens
// many more streams than that.
func LeakCheck(t testing.TB, slack int, watched ...Watched) func() {
	t.Helper()
	before := make([]Usage, len(watched))
	for i, w := range watched {
		usage, err := w.Metrics.Usage(w.Process)
		if err != nil {
			t.Fatalf("usage of %s: %v", w.Name, err)
		}
		before[i] = usage
	}
	return func() {
		t.Helper()
		for i, w := range watched {
			var now Usage
			Eventually(t, 90*time.Second, w.Name+" gives back what it held", func() error {
				var err error
				if now, err = w.Metrics.Usage(w.Process); err != nil {
					return err
				}
				// A relay is also asked for tickets that wait for nobody.
				if waiting, err := w.Metrics.Value("postern_relay_waiting_tickets"); err == nil && waiting > 0 {
					return fmt.Errorf("%v tickets wait for their other side", waiting)
				}
				if now.FDs > before[i].FDs+slack || now.Goroutines > before[i].Goroutines+4*slack || now.Pipes > 2*sparePipes+slack {
					return fmt.Errorf("now %+v, before %+v", now, before[i])
				}
				return nil
			})
			t.Logf("%s: now %+v, before %+v", w.Name, now, before[i])
		}
	}
}

package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// lines makes entries of one chain.
func lines(h *Head, n int) Batch {
	b := Batch{Organization: "acme"}
	for range n {
		var line []byte
		line, *h = h.Seal(nil, &Record{
			ID: fmt.Sprint("id-", h.Sequence), Time: time.Unix(1e9, 0), Organization: "acme", Reporter: ByHub, Action: Open, Target: `a"]b\c`,
		})
		b.Lines = append(b.Lines, line)
	}
	return b
}

func TestFileSink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s := &FileSink{Path: path}
	var h Head
	deliver := func(b Batch) {
		t.Helper()
		if err := s.Deliver(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) []Report {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		reports, err := VerifyAll(bytes.NewReader(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return reports
	}
	deliver(lines(&h, 3))
	if err := os.Rename(path, path+".1"); err != nil { // as logrotate does
		t.Fatal(err)
	}
	next := lines(&h, 2)
	deliver(next)
	if old, now := read(path+".1"), read(path); old[0].Last != 3 || now[0].First != 4 || now[0].Last != 5 {
		t.Errorf("%+v, %+v", old, now)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A crash tore the last line off; its batch comes again.
	text, _ := os.ReadFile(path)
	if err := os.WriteFile(path, text[:len(text)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	deliver(next)
	if now := read(path); now[0].Last != 5 || now[0].Repeated != 1 {
		t.Errorf("%+v", now)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (&FileSink{Path: t.TempDir()}).Deliver(t.Context(), next); err == nil {
		t.Error("a directory takes records")
	}
}

func TestWebhookSink(t *testing.T) {
	secret := []byte("a secret of the test")
	var mu sync.Mutex
	status := http.StatusOK
	var batches []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if want := Sign(secret, time.Unix(1234, 0), body); r.Header.Get(HeaderSignature) != want {
			t.Errorf("signature %q; want %q", r.Header.Get(HeaderSignature), want)
		}
		batches = append(batches, r.Header.Get(HeaderBatch))
		if reports, err := VerifyAll(bytes.NewReader(body), nil); err != nil || len(reports) != 1 {
			t.Errorf("%v, %v", reports, err)
		}
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
	}))
	defer server.Close()
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s := &WebhookSink{URL: server.URL, Secret: secret, Client: client, Now: func() time.Time { return time.Unix(1234, 0) }}
	defer s.Close()
	var h Head
	b := lines(&h, 4)
	for _, c := range []struct {
		status int
		ok     bool
	}{{200, true}, {204, true}, {302, false}, {429, false}, {500, false}, {200, true}} {
		mu.Lock()
		status = c.status
		mu.Unlock()
		if err := s.Deliver(t.Context(), b); (err == nil) != c.ok {
			t.Errorf("%d: %v", c.status, err)
		}
	}
	if len(slices.Compact(batches)) != 1 {
		t.Errorf("the same batch has several names: %q", batches)
	}
	stranger := &WebhookSink{URL: server.URL, Secret: secret, Client: &http.Client{}, Now: time.Now}
	if err := stranger.Deliver(t.Context(), b); err == nil {
		t.Error("a server that nobody vouches for gets records")
	}
}

// syslogd receives messages; it hangs up after some connections' first bytes.
type syslogd struct {
	ln   net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	got  []string
	quit int // connections that are closed after their first message
}

func (d *syslogd) serve() {
	for {
		c, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Go(func() {
			defer c.Close()
			r := bufio.NewReader(c)
			for {
				var n int
				if _, err := fmt.Fscanf(r, "%d ", &n); err != nil || n > 1<<20 {
					return
				}
				b := make([]byte, n)
				if _, err := io.ReadFull(r, b); err != nil {
					return
				}
				d.mu.Lock()
				hangUp := d.quit > 0
				if hangUp {
					d.quit--
				} else {
					d.got = append(d.got, string(b))
				}
				d.mu.Unlock()
				if hangUp {
					return
				}
			}
		})
	}
}

func TestSyslogSink(t *testing.T) {
	web := httptest.NewUnstartedServer(nil) // for its certificate
	web.StartTLS()
	defer web.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	d := &syslogd{ln: ln}
	d.wg.Go(d.serve)
	defer d.wg.Wait()
	defer ln.Close()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	var dialer net.Dialer
	s := &SyslogSink{Address: ln.Addr().String(), TLS: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}, Hostname: "hub one", Dial: dialer.DialContext}
	defer s.Close()
	var h Head
	const total = 40
	d.quit = 1 // the first connection swallows what it was sent, and acknowledges it
	for range total / 2 {
		b := lines(&h, 2)
		for s.Deliver(t.Context(), b) != nil && t.Context().Err() == nil {
			continue
		}
	}
	ids := func() map[string]bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		all := map[string]bool{}
		for _, m := range d.got {
			_, after, _ := strings.Cut(m, `[postern@32473 id="`)
			id, _, _ := strings.Cut(after, `"`)
			all[id] = true
		}
		return all
	}
	// What was lost with the first connection goes with the next batch at the latest.
	limit := time.Now().Add(20 * time.Second)
	for len(ids()) < total && time.Now().Before(limit) {
		_ = s.Deliver(t.Context(), lines(&h, 1))
	}
	all := ids()
	for i := range total {
		if !all[fmt.Sprint("id-", i)] {
			t.Fatalf("record %d did not arrive", i)
		}
	}
	d.mu.Lock()
	first := d.got[0]
	d.mu.Unlock()
	if !strings.HasPrefix(first, "<108>1 2001-09-09T01:46:40.000000Z hubone postern - open [postern@32473 ") ||
		!strings.Contains(first, ` target="a\"\]b\\c"`) || !strings.HasSuffix(first, `"}`) {
		t.Errorf("message %s", first)
	}
	s.TLS.RootCAs = x509.NewCertPool()
	_ = s.Close()
	if err := s.Deliver(t.Context(), lines(&h, 1)); err == nil {
		t.Error("a server that nobody vouches for gets records")
	}
}

// TestSyslogSinkSettles: what a server swallowed arrives without anything new, and what a
// server that hangs may not have read is remembered however long ago it was sent.
func TestSyslogSinkSettles(t *testing.T) {
	web := httptest.NewUnstartedServer(nil) // for its certificate
	web.StartTLS()
	defer web.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	d := &syslogd{ln: ln, quit: 1} // the first connection swallows what it was sent
	d.wg.Go(d.serve)
	defer d.wg.Wait()
	defer ln.Close()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	var dialer net.Dialer
	s := &SyslogSink{Address: ln.Addr().String(), TLS: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}, Hostname: "hub", Dial: dialer.DialContext}
	defer s.Close()
	if err := s.Settle(t.Context()); err != nil || s.conn != nil {
		t.Errorf("settled before anything was sent: %v", err)
	}
	var h Head
	if err := s.Deliver(t.Context(), lines(&h, 3)); err != nil {
		t.Fatal(err)
	}
	s.unsure[0].at = time.Now().Add(-time.Hour)
	arrived := func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.got)
	}
	for limit := time.Now().Add(20 * time.Second); arrived() < 3 && time.Now().Before(limit); time.Sleep(time.Millisecond) {
		_ = s.Settle(t.Context())
	}
	if arrived() != 3 {
		t.Errorf("%d of 3 records arrived", arrived())
	}

	old := &SyslogSink{}
	for range 64 {
		old.remember(make([]byte, minUnsure/16))
		old.unsure[len(old.unsure)-1].at = time.Now().Add(-time.Hour)
	}
	if size := len(old.unsure) * minUnsure / 16; size < minUnsure || size > minUnsure*2 {
		t.Errorf("%d bytes are remembered, want about %d", size, minUnsure)
	}
	for range 64 {
		old.remember(make([]byte, maxUnsure/16))
	}
	if len(old.unsure) > 16 {
		t.Errorf("%d sixteenths of the most are remembered", len(old.unsure))
	}
}

// away is a Sink that may fail, and keeps what it takes.
type away struct {
	mu  sync.Mutex
	err error
	got []string
}

func (a *away) Deliver(_ context.Context, b Batch) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	for _, line := range b.Lines {
		a.got = append(a.got, string(line))
	}
	return nil
}

func (a *away) Close() error { return nil }

func (a *away) set(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// places is a Cursors, and an ExportMetrics.
type places struct {
	mu     sync.Mutex
	at     map[string]uint64
	missed uint64
	lag    time.Duration // of the sink called down
}

func (p *places) LoadCursor(_ context.Context, name string) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[name], nil
}

func (p *places) SaveCursor(_ context.Context, name string, at uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[name] = at
	return nil
}

func (p *places) Delivered(string, int) {}
func (p *places) SinkFailed(string)     {}
func (p *places) Missed(_ string, n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missed += n
}

func (p *places) Lag(sink string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sink == "down" {
		p.lag = d
	}
}

// TestExporterCatchesUp has a sink that is down for a day, beside one that works.
func TestExporterCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := run(t, m, newSigner(t))
		p := &places{at: map[string]uint64{}}
		export := func(name string, s Sink) (stop func()) {
			e := NewExporter(ExporterConfig{
				Name: name, Cursor: name, Sink: s, Journal: m, Cursors: p, Changed: b.Changed, Metrics: p, Log: slog.New(slog.DiscardHandler),
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); e.Run(ctx) }()
			stop = sync.OnceFunc(func() { cancel(); <-done })
			t.Cleanup(stop)
			return stop
		}
		up, down := &away{}, &away{err: errors.New("down")}
		stopUp := export("up", up)
		stopDown := export("down", down)
		for i := range 240 {
			b.Record(Record{Organization: []string{"a", "b", ""}[i%3], Action: Open})
			time.Sleep(6 * time.Minute)
		}
		synctest.Wait()
		if len(up.got) < 240 {
			t.Errorf("the sink that works has %d", len(up.got))
		}
		p.mu.Lock()
		if p.lag < 20*time.Hour {
			t.Errorf("lag %s", p.lag)
		}
		p.mu.Unlock()
		down.set(nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(down.got) != len(up.got) {
			t.Errorf("the sink that was down has %d of %d", len(down.got), len(up.got))
		}
		if _, err := VerifyAll(strings.NewReader(strings.Join(down.got, "\n")), nil); err != nil {
			t.Error(err)
		}
		stopUp()
		stopDown()
		n := len(up.got)
		export("up", up) // goes on where it stopped
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(up.got) != n {
			t.Errorf("%d records came again", len(up.got)-n)
		}
		if p.missed != 0 {
			t.Errorf("%d missed", p.missed)
		}
	})
}

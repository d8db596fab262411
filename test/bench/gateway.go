package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// site is a Kubernetes API as a client knows it: the server itself, or the
// gateway's URL of it.
type site struct {
	base   string // before the Kubernetes path
	ca     string // file with the certificate to trust
	token  string
	conf   *tls.Config
	client *http.Client // over HTTP/2, as client libraries do
}

// newSite returns the site at a URL; the file holds the certificate to trust.
func newSite(base, certFile, name, token string) (*site, error) {
	conf, err := clientTLS(certFile)
	if err != nil {
		return nil, err
	}
	conf.ServerName = name
	s := &site{base: base, ca: certFile, token: token, conf: conf}
	s.client = s.newClient()
	return s, nil
}

// newClient returns a client with connections of its own.
func (s *site) newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: s.conf.Clone(), ForceAttemptHTTP2: true, DisableCompression: true}}
}

// get begins a request, and returns its body.
func (s *site) get(ctx context.Context, client *http.Client, path string, gzip bool) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		return nil, err
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	if gzip {
		r.Header.Set("Accept-Encoding", "gzip")
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		_ = answer.Body.Close()
		return nil, fmt.Errorf("%s: %s: %s", path, answer.Status, text)
	}
	return answer.Body, nil
}

// fetch makes a request and reads all of the answer.
func (s *site) fetch(ctx context.Context, client *http.Client, path string, gzip bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := s.get(ctx, client, path, gzip)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, body)
	return cmp.Or(err, body.Close())
}

// Paths of the API.
const (
	pathPods  = "/api/v1/pods"
	pathFew   = "/api/v1/namespaces/bench/pods"
	pathPod   = "/api/v1/namespaces/bench/pods/one"
	pathExec  = "/api/v1/namespaces/bench/pods/one/exec?command=cat&stdin=true&stdout=true"
	pathWatch = "/api/v1/pods?watch=true&every="
)

// startAPI is the API server by itself.
func startAPI(_ context.Context, b *bench, w *world, _ path) (err error) {
	addrs, err := b.add(w, "api", "api", "-cert", b.apiCert)
	if err == nil {
		w.api, err = newSite("https://"+addrs[0], b.apiCA, certName, "")
	}
	return err
}

// startGateway is the API server, an agent beside it and the hub's gateway.
func startGateway(ctx context.Context, b *bench, w *world, _ path) error {
	api, addrs, err := b.role("api", "api", "-cert", b.apiCert)
	if err != nil {
		return err
	}
	w.others = append(w.others, api)
	h, err := b.startHubProcess(ctx, w)
	if err != nil {
		return err
	}
	account := b.dir + "/account.token"
	if err := os.WriteFile(account, []byte("the-agents-own"), 0o600); err != nil {
		return err
	}
	err = b.startPostern(w, "agent", "--connect-url", "tls://"+h.addr, "--organization", orgName, "--agent-id", agentName,
		"--token-file", h.token, "--ca-file", h.ca, "--gateway",
		"--kubernetes-api", "https://"+addrs[0], "--kubernetes-token-file", account, "--kubernetes-ca-file", b.apiCA)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(h.token)
	if err != nil {
		return err
	}
	var token struct{ Token string }
	if err := json.Unmarshal(text, &token); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(h.addr)
	if err != nil {
		return err
	}
	if w.api, err = newSite("https://"+h.addr+"/"+agentName, h.ca, host, token.Token); err != nil {
		return err
	}
	end := time.Now().Add(patience)
	for {
		err := w.api.fetch(ctx, w.api.client, pathPod, false)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		wait(ctx, 100*time.Millisecond)
	}
}

// sampleLists fetches the long list over and over.
func sampleLists(ctx context.Context, s sampler) error {
	for _, metric := range []string{mLists, mListsGzip} {
		n, start := 0, time.Now()
		for ; n < 3 || time.Since(start) < s.opts.sample; n++ {
			if err := s.world.api.fetch(ctx, s.world.api.client, pathPods, metric == mListsGzip); err != nil {
				return err
			}
		}
		s.record(metric, float64(n)/time.Since(start).Seconds())
	}
	return nil
}

// sampleGets fetches one object again and again, one at a time; then lists as 50
// kubectl at once do, each with a connection of its own.
func sampleGets(ctx context.Context, s sampler) error {
	api := s.world.api
	var times []float64
	cpu := s.cpuTimes()
	for start := time.Now(); time.Since(start) < s.opts.sample; {
		begin := time.Now()
		if err := api.fetch(ctx, api.client, pathPod, false); err != nil {
			return err
		}
		times = append(times, float64(time.Since(begin))/float64(time.Millisecond))
	}
	s.recordCost(mCPUGet, cpu, len(times))
	slices.Sort(times)
	s.record(mGetP50, percentile(times, 0.50))
	s.record(mGetP99, percentile(times, 0.99))
	cpu = s.cpuTimes()
	n, took, err := together(50, s.opts.sample, func() error {
		client := api.newClient()
		defer client.CloseIdleConnections()
		return api.fetch(ctx, client, pathFew, false)
	})
	s.recordCost(mCPUOwn, cpu, int(n))
	s.record(mKubectls, float64(n)/took.Seconds())
	return err
}

// sampleExecs upgrades connections, a hundred at once.
func sampleExecs(ctx context.Context, s sampler) error {
	cpu := s.cpuTimes()
	n, took, err := together(100, s.opts.sample, func() error { return s.world.api.exec(ctx) })
	s.recordCost(mCPUExec, cpu, int(n))
	s.record(mExecs, float64(n)/took.Seconds())
	return err
}

// recordCost records the processor time of each process since before, of one of n
// requests. The reference's processes are not asked for: its server is the target.
func (s sampler) recordCost(metric string, before []float64, n int) {
	for i, now := range s.cpuTimes() {
		if s.world.procs[i].name != "api" {
			s.record(s.ofProcess(metric, i), (now-before[i])/float64(n)*1e6)
		}
	}
}

// together has workers do something again and again for a while, and returns how
// often it was done.
func together(workers int, length time.Duration, do func() error) (done int64, took time.Duration, err error) {
	start := time.Now()
	var n atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for errs[i] == nil && time.Since(start) < length {
				if errs[i] = do(); errs[i] == nil {
					n.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return n.Load(), time.Since(start), cmp.Or(errs...)
}

// exec upgrades a connection of its own, sends a line and waits until it is back.
func (s *site) exec(ctx context.Context) error {
	u, err := url.Parse(s.base + pathExec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conf := s.conf.Clone()
	conf.NextProtos = []string{"http/1.1"}
	c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", upgradeTo)
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	if err := r.Write(c); err != nil {
		return err
	}
	in := bufio.NewReader(c)
	answer, err := http.ReadResponse(in, r)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		return fmt.Errorf("exec: %s: %s", answer.Status, text)
	}
	if _, err := io.WriteString(c, shellLine); err != nil {
		return err
	}
	if back, err := in.ReadString('\n'); err != nil || back != shellLine {
		return fmt.Errorf("exec: got %q back, %w", back, err)
	}
	return nil
}

// The figure of watches: so many of them, with an event each so often, are a
// thousand events a second.
const (
	watchers   = 200
	eventEvery = 200 // milliseconds
)

// sampleWatches counts the events that arrive, and how late.
func sampleWatches(ctx context.Context, s sampler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bodies, err := s.world.api.watch(ctx, watchers, eventEvery)
	if err != nil {
		return err
	}
	var from, to atomic.Int64 // the events that count, by when they were sent
	var mu sync.Mutex
	var late []float64
	var wg sync.WaitGroup
	from.Store(time.Now().Add(time.Second).UnixNano())
	to.Store(time.Now().Add(time.Second + s.long()).UnixNano())
	for _, body := range bodies {
		wg.Go(func() {
			dec := json.NewDecoder(body)
			for {
				var e watchEvent
				if dec.Decode(&e) != nil {
					return
				}
				if now := time.Now().UnixNano(); e.Sent >= from.Load() && e.Sent < to.Load() {
					mu.Lock()
					late = append(late, float64(now-e.Sent)/float64(time.Millisecond))
					mu.Unlock()
				}
			}
		})
	}
	wait(ctx, time.Second+s.long()+500*time.Millisecond)
	cancel()
	for _, body := range bodies {
		_ = body.Close()
	}
	wg.Wait()
	slices.Sort(late)
	s.record(mEvents, float64(len(late))/s.long().Seconds())
	s.record(mEventP99, percentile(late, 0.99))
	return nil
}

// watch opens n watches; each gets an event every so many milliseconds, or none.
func (s *site) watch(ctx context.Context, n, every int) ([]io.ReadCloser, error) {
	bodies := make([]io.ReadCloser, n)
	for i := range bodies {
		var err error
		if bodies[i], err = s.get(ctx, s.client, fmt.Sprint(pathWatch, every), false); err != nil {
			return nil, fmt.Errorf("watch %d: %w", i+1, errors.Join(err, ctx.Err()))
		}
	}
	return bodies, nil
}

// idleAfter is how long watches have been idle when their memory is looked at: what
// opening them has left behind is given back by then, if it ever is.
const idleAfter = 3 * time.Second

// sampleWatching opens watches on which nothing happens.
func sampleWatching(ctx context.Context, s sampler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := s.world.api.watch(ctx, 20, 0); err != nil {
		return err
	}
	wait(ctx, 500*time.Millisecond)
	n := min(s.opts.idle, 400)
	before := make([]float64, len(s.world.procs))
	for i, p := range s.world.procs {
		var err error
		if before[i], err = p.resident(); err != nil {
			return err
		}
	}
	if _, err := s.world.api.watch(ctx, n, 0); err != nil {
		return err
	}
	wait(ctx, idleAfter)
	for i, p := range s.world.procs {
		after, err := p.resident()
		if err != nil {
			return err
		}
		s.record(s.ofProcess(mWatching, i), (after-before[i])/float64(n))
	}
	return nil
}

package impersonate

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// TestUpgrade: exec and port-forward leave HTTP behind, and go both ways.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.answer = func(rw http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	}
	for _, protocol := range []string{"SPDY/3.1", "websocket"} {
		c := ann()
		c.Method, c.URI = http.MethodPost, "/api/v1/namespaces/a/pods/b/exec?command=sh&stdin=true"
		r := w.request(c, nil)
		r.Header.Set("Upgrade", protocol)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Impersonate-User", "root")
		answer, err := w.hub.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		body, ok := answer.Body.(io.ReadWriteCloser)
		if !ok || answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("Upgrade") != protocol ||
			answer.Header.Get("X-Stream-Protocol-Version") != "v4.channel.k8s.io" {
			t.Fatalf("got %s %v", answer.Status, answer.Header)
		}
		for i := range 3 {
			text := strings.Repeat(strconv.Itoa(i), 1+i*50000)
			go func() { _, _ = io.WriteString(body, text) }()
			back := make([]byte, len(text))
			if _, err := io.ReadFull(body, back); err != nil || string(back) != text {
				t.Fatalf("%d bytes come back wrong: %v", len(text), err)
			}
		}
		seen := w.requests()
		last := seen[len(seen)-1]
		if last.ProtoMajor != 1 || last.Header.Get("Impersonate-User") != "ann@example.org" || last.Header.Get("Authorization") != "Bearer "+agentToken {
			t.Errorf("the API server sees %s %v", last.Proto, last.Header)
		}
		w.mu.Lock()
		cut := w.visits[len(w.visits)-1].Cut
		w.mu.Unlock()
		cut(wire.Fail(wire.LegPolicy, wire.CodeDenied, "access has changed"))
		if _, err := io.Copy(io.Discard, body); err != nil && !strings.Contains(err.Error(), "closed") {
			t.Logf("ends with %v", err)
		}
		_ = body.Close()
	}
	// An API server that does not want to.
	w.answer = func(rw http.ResponseWriter, _ *http.Request) {
		http.Error(rw, "pods \"b\" not found", http.StatusNotFound)
	}
	r := w.request(ann(), nil)
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Connection", "Upgrade")
	if answer, body := w.send(r); answer.StatusCode != http.StatusNotFound || body != "pods \"b\" not found\n" {
		t.Errorf("got %s %s", answer.Status, body)
	}
}

// TestWatch: each event comes as soon as the API server has sent it.
func TestWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	next, ended := make(chan string), make(chan struct{})
	w.answer = func(rw http.ResponseWriter, r *http.Request) {
		defer close(ended)
		for {
			select {
			case event := <-next:
				_, _ = io.WriteString(rw, event+"\n")
				_ = http.NewResponseController(rw).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
	c := ann()
	c.URI = "/api/v1/pods?watch=1"
	begin := make(chan struct{})
	go func() { next <- "first"; close(begin) }()
	answer, err := w.hub.RoundTrip(w.request(c, nil))
	if err != nil {
		t.Fatal(err)
	}
	<-begin
	lines := bufio.NewReader(answer.Body)
	for _, want := range []string{"first", "second", "third"} {
		if want != "first" {
			next <- want
		}
		if line, err := lines.ReadString('\n'); err != nil || line != want+"\n" {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	_ = answer.Body.Close() // the client leaves, and so does the agent
	<-ended
}

// TestCut: what is no longer allowed ends, and does not look like a good end.
func TestCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	running := make(chan bool)
	w.answer = func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(rw, "half")
			_ = http.NewResponseController(rw).Flush()
		}
		running <- true
		<-r.Context().Done()
	}
	cut := func() {
		<-running
		w.mu.Lock()
		defer w.mu.Unlock()
		w.visits[len(w.visits)-1].Cut(wire.Fail(wire.LegPolicy, wire.CodeDenied, "access has changed: none is left"))
	}
	answer, err := w.hub.RoundTrip(w.request(ann(), nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(answer.Body, make([]byte, len("half"))); err != nil {
		t.Fatal(err)
	}
	cut()
	if body, err := io.ReadAll(answer.Body); err == nil || len(body) > 0 {
		t.Errorf("got %q, and then %v", body, err)
	}
	_ = answer.Body.Close()
	c := ann()
	c.Method = http.MethodPost
	go cut()
	answer, body := w.send(w.request(c, strings.NewReader("{}")))
	isStatus(t, answer, body, http.StatusForbidden, "access has changed")
}

// TestBodies: trailers, long bodies and the wait for 100 (Continue) come through.
func TestBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.answer = func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "Grpc-Status")
		n, err := io.Copy(rw, r.Body)
		if err != nil {
			t.Error(err)
		}
		rw.Header().Set("Grpc-Status", strconv.FormatInt(n, 10)+" "+r.Trailer.Get("X-Sum")+r.Trailer.Get("X-Remote-User"))
	}
	c := ann()
	c.Method = http.MethodPut
	text := strings.Repeat("0123456789", 300_000)
	r := w.request(c, struct{ io.Reader }{strings.NewReader(text)}) // of a length that nobody knows
	r.Trailer = http.Header{"X-Sum": {"abc"}, "X-Remote-User": {"root"}}
	if answer, body := w.send(r); body != text || answer.Trailer.Get("Grpc-Status") != "3000000 abc" {
		t.Errorf("%d bytes come back, with trailer %v", len(body), answer.Trailer)
	}
	w.answer = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusConflict) }
	r = w.request(c, noBody{t})
	r.Header.Set("Expect", "100-continue")
	if answer, _ := w.send(r); answer.StatusCode != http.StatusConflict {
		t.Errorf("got %s", answer.Status)
	}
}

// noBody is a body that nobody may ask for.
type noBody struct{ t *testing.T }

// Read implements io.Reader.
func (b noBody) Read([]byte) (int, error) {
	b.t.Error("a body is sent that the API server has not asked for")
	return 0, io.EOF
}

// TestCredentialsChange: a service account's token is replaced while it is in use, and
// so is the cluster's authority.
func TestCredentialsChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	send := func() (*http.Response, string) { return w.send(w.request(ann(), nil)) }
	send()
	w.write("token", "next")
	if err := w.server.api.look(); err != nil {
		t.Fatal(err)
	}
	send()
	if seen := w.requests(); seen[0].Header.Get("Authorization") != "Bearer "+agentToken || seen[1].Header.Get("Authorization") != "Bearer next" {
		t.Errorf("the API server sees %q, then %q", seen[0].Header["Authorization"], seen[1].Header["Authorization"])
	}
	for _, bad := range []string{"", " \n", "a b", "a\r\nImpersonate-User: root"} {
		w.write("token", bad)
		if err := w.server.api.look(); err == nil || strings.Contains(err.Error(), "root") || w.server.api.token() != "next" {
			t.Errorf("%q is taken, or told: %v", bad, err)
		}
	}
	w.write("token", "next")
	w.write("ca.crt", otherAuthority)
	if err := w.server.api.look(); err != nil {
		t.Fatal(err)
	}
	answer, body := send()
	isStatus(t, answer, body, http.StatusBadGateway, "tls: the certificate of the API server is not good")
	w.write("ca.crt", "no certificate")
	if err := w.server.api.look(); err == nil {
		t.Error("a CA file without a certificate is taken")
	}
	w.write("ca.crt", authority(w.api))
	if err := w.server.api.look(); err != nil {
		t.Fatal(err)
	}
	if answer, body := send(); answer.StatusCode != http.StatusOK {
		t.Errorf("with the first authority again: %s", body)
	}
	w.config.API.TokenFile = w.file("none")
	if _, err := New(w.config); err == nil {
		t.Error("a server starts without a token")
	}
}

// TestClusterFails: what goes wrong behind the agent is told as such.
func TestClusterFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.answer = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusUnauthorized) }
	answer, body := w.send(w.request(ann(), nil))
	isStatus(t, answer, body, http.StatusBadGateway, "does not accept the token of the agent's service account")
	w.answer = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	answer, body = w.send(w.request(ann(), nil))
	isStatus(t, answer, body, http.StatusBadGateway, "target: the API server broke the connection")
	w.api.Close()
	w.start() // without a connection from before
	answer, body = w.send(w.request(ann(), nil))
	isStatus(t, answer, body, http.StatusBadGateway, "refused the connection")
}

// TestServices: a request goes to a service that rules and grants allow, with nothing
// of the caller's or the agent's credentials.
func TestServices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	type got struct {
		host, uri string
		header    http.Header
	}
	seen := make(chan got, 1)
	service := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- got{r.Host, r.RequestURI, r.Header} }))
	service.Config.ErrorLog = w.api.Config.ErrorLog
	service.StartTLS()
	defer service.Close()
	w.dial = func(who policy.Asker, to wire.Target) (net.Conn, error) {
		if who.Principal.String() != "user:ann@example.org" || to.String() != "tcp:example.com.svc:8443" && to.Host != "grafana.monitoring.svc" {
			t.Errorf("%s dials %s", who, to)
		}
		return net.Dial("tcp", service.Listener.Addr().String())
	}
	c := ann()
	c.URI, c.Service = "/d/a%2Fb?x=1", &assertion.Service{Scheme: "https", Namespace: "monitoring", Name: "grafana", Port: "8443"}
	// The name in the certificate is not the service's.
	answer, body := w.send(w.request(c, nil))
	isStatus(t, answer, body, http.StatusBadGateway, "tls: the certificate of service monitoring/grafana is not good")
	w.config.API.ServiceCAFile = w.file("service.crt")
	w.write("service.crt", authority(service))
	w.start()
	answer, body = w.send(w.request(c, nil))
	isStatus(t, answer, body, http.StatusBadGateway, "tls: the certificate of service monitoring/grafana is not good")

	plain := httptest.NewServer(service.Config.Handler)
	defer plain.Close()
	w.dial = func(policy.Asker, wire.Target) (net.Conn, error) {
		return net.Dial("tcp", plain.Listener.Addr().String())
	}
	c.Service.Scheme, c.Service.Port = "http", "80"
	r := w.request(c, nil)
	r.Header.Set("Authorization", "Bearer mine")
	if answer, body := w.send(r); answer.StatusCode != http.StatusOK {
		t.Fatal(body)
	}
	g := <-seen
	if g.host != "grafana.monitoring.svc" || g.uri != "/d/a%2Fb?x=1" || g.header["Authorization"] != nil || g.header["Impersonate-User"] != nil || len(w.requests()) > 0 {
		t.Errorf("the service sees %+v", g)
	}
	if v := w.visits[len(w.visits)-1]; v.Target.String() != "tcp:grafana.monitoring.svc:80" {
		t.Errorf("judged was %+v", v)
	}
	w.judge = func(Visit) error { return wire.Fail(wire.LegPolicy, wire.CodeDenied, "no rule allows it") }
	answer, body = w.send(w.request(c, nil))
	isStatus(t, answer, body, http.StatusForbidden, "service monitoring/grafana is not in the exposed services allowlist: no rule allows it")
	w.judge = nil
	w.dial = func(policy.Asker, wire.Target) (net.Conn, error) {
		return nil, wire.Fail(wire.LegPolicy, wire.CodeDenied, "leads to a loopback address")
	}
	c.Service.Port = "81"
	answer, body = w.send(w.request(c, nil))
	isStatus(t, answer, body, http.StatusForbidden, "is not in the exposed services allowlist: leads to")
	for _, bad := range []assertion.Service{
		{Scheme: "http", Namespace: "a", Name: "b", Port: "web"}, {Scheme: "http", Namespace: "a", Name: "b", Port: "0"}, {Scheme: "http", Namespace: "a", Name: "b", Port: "65536"},
		{Scheme: "http", Namespace: "a", Name: "b.c", Port: "1"}, {Scheme: "http", Namespace: "a/b", Name: "b", Port: "1"}, {Scheme: "http", Namespace: "a", Name: "169.254.169.254", Port: "1"},
	} {
		c.Service = &bad
		if answer, _ := w.send(w.request(c, nil)); answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%+v: %s", bad, answer.Status)
		}
	}
}

// TestJudged: whom the judge refuses reaches nothing.
func TestJudged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.judge = func(Visit) error {
		return wire.Fail(wire.LegPolicy, wire.CodeDenied, "the hub's access grants do not let user:ann@example.org reach office on gateway")
	}
	answer, body := w.send(w.request(as(assertion.Identity{User: "bob"}), nil))
	isStatus(t, answer, body, http.StatusForbidden, "policy: the hub's access grants")
	if len(w.requests())+len(w.reviews) > 0 {
		t.Error("the API server is asked for somebody who has no access")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	s := &Server{users: make(map[string]int)}
	var leave []func()
	enter := func(who string) error {
		f, err := s.enter(who)
		if err == nil {
			leave = append(leave, f)
		}
		return err
	}
	for range maxOfOne {
		if err := enter("user:ann"); err != nil {
			t.Fatal(err)
		}
	}
	if f := wire.AsFailure(enter("user:ann"), wire.LegUnknown); f == nil || f.Code != wire.CodeOverloaded {
		t.Errorf("one too many of one: %v", f)
	}
	for i := s.all; i < maxRequests; i++ {
		if err := enter("user:" + strconv.Itoa(i%100)); err != nil {
			t.Fatal(err)
		}
	}
	if f := wire.AsFailure(enter("user:bob"), wire.LegUnknown); f == nil || f.Code != wire.CodeOverloaded {
		t.Errorf("one too many: %v", f)
	}
	for _, f := range leave {
		f()
	}
	if s.all != 0 || len(s.users) != 0 {
		t.Errorf("%d of %v stay", s.all, s.users)
	}
}

// TestDrain: an answer in a drain is the last one, and idle connections end when they
// are told to.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ended := make(chan struct{}, 2)
	w.hub.DialContext = func(context.Context, string, string) (net.Conn, error) {
		mine, its := net.Pipe()
		go func() {
			serve(w.server, its)
			ended <- struct{}{}
		}()
		return mine, nil
	}
	if answer, _ := w.send(w.request(ann(), nil)); answer.Close {
		t.Error("an answer is the last before the drain")
	}
	w.server.Drain()
	if answer, _ := w.send(w.request(ann(), nil)); !answer.Close {
		t.Error("an answer in the drain is not the last")
	}
	<-ended
	w.server.draining.Store(false)
	w.send(w.request(ann(), nil))
	w.server.CloseIdle()
	<-ended
}

// TestHeaderLimits: a header that is too long is refused before it is held.
func TestHeaderLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	codes := w.raw("GET /api/v1/pods HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", maxHeader+8192) + "\r\n\r\n")
	if len(codes) != 1 || codes[0] != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %v", codes)
	}
}

func BenchmarkGet(b *testing.B) {
	w := newWorld(b)
	c := ann()
	b.ReportAllocs()
	for b.Loop() {
		w.send(w.request(c, nil))
		w.seen, w.visits = w.seen[:0], w.visits[:0]
	}
}

// otherAuthority has signed nothing.
const otherAuthority = `-----BEGIN CERTIFICATE-----
MIIBdjCCAR2gAwIBAgIUF3fK3Y0ZCDsI6xApeagaqTBIqkgwCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFb3RoZXIwIBcNMjYxMTIyMDQ0NTIwWhgPMjEyNjEwMjkwNDQ1
MjBaMBAxDjAMBgNVBAMMBW90aGVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
eWpRnSlvIw4+NmgX6rmEvuxN9vePYZ6PoDHGT4b5x26qgdkjBU0mVYFFTpXDJqCc
KXb5OsKhOVJ+qc/dCgD8baNTMFEwHQYDVR0OBBYEFNHFu/5bIpDEPAx06vsBhygH
oRxaMB8GA1UdIwQYMBaAFNHFu/5bIpDEPAx06vsBhygHoRxaMA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgBBaU0bJhjbFamUdFzr+JLBa++TIu8fxG
0t/uZvTZ3J8CIE2C0b0U0VlN50mAItNQl8TzTAZdNUNy8g5MTbKs/QRY
-----END CERTIFICATE-----
`

// TestSlowHeader: a header that does not come to its end takes its connection with it.
func TestSlowHeader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(agentToken), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{API: API{Address: target(t, "127.0.0.1:1"), TokenFile: file}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.Run(ctx) }()
		mine, its := net.Pipe()
		go serve(s, its)
		begin := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			for err := error(nil); err == nil; time.Sleep(time.Second) { // it is never silent for long
				_, err = io.WriteString(mine, "G")
			}
		})
		if _, err := io.Copy(io.Discard, mine); err != nil {
			t.Logf("ends with %v", err)
		}
		if took := time.Since(begin); took > headerTime+time.Second {
			t.Errorf("it took %s", took)
		}
		_ = mine.Close()
		wg.Wait()
		cancel()
		<-ended
	})
}

package e2e_test

import (
	"encoding/pem"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// terminator puts an nginx that ends TLS in front of a hub. It returns the
// nginx's address and the file of the authority that signed its certificate, which
// is good for localhost and hub.test.
func terminator(t *testing.T, hub *harness.Hub, idle time.Duration) (addr, caFile string) {
	t.Helper()
	dir := t.TempDir()
	ca := newCA(t)
	caFile = filepath.Join(dir, "company.pem")
	write(t, caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
	certFile, keyFile := filepath.Join(dir, "lb.crt"), filepath.Join(dir, "lb.key")
	ca.issue(t, 7, certFile, keyFile)
	return harness.StartTLSTerminator(t, hub.Addr, certFile, keyFile, idle), caFile
}

// TestSquidIsTheOnlyWayOut runs agents in a network that has a Squid with a
// password and nothing else, not even names: once with tls:// through CONNECT, and
// once with wss:// through CONNECT and an nginx that ends TLS, whose time-out is
// shorter than the test's silence.
func TestSquidIsTheOnlyWayOut(t *testing.T) {
	deadline(t)
	const idle = 15 * time.Second
	office := harness.NewNetwork(t)
	echo, err := net.Listen("tcp", office.Host+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				harness.Echo(conn.(*net.TCPConn))
			}()
		}
	}()
	target := "tcp:" + echo.Addr().String()

	hub := harness.StartHub(t, programs, harness.HubSpec{})
	lb, companyCA := terminator(t, hub, idle)
	squid := harness.StartSquid(t, office.Host, "site", "s3cret", map[string]string{"hub.test": "127.0.0.1"}, port(hub.Addr), port(lb))
	// Only the port of the load balancer is open to web traffic here.
	strict := harness.StartSquid(t, office.Host, "site", "s3cret", map[string]string{"hub.test": "127.0.0.1"}, port(lb))

	const good = "site:s3cret@"
	common := func(url, id string) []string {
		return []string{"--connect-url", url, "--ca-file", hub.CA(), "--organization", "default", "--agent-id", id, "--token-file", hub.Token(t, "default")}
	}
	start := func(id, url, way string, more ...string) *harness.Process {
		env := []string{}
		if way != "" {
			env = append(env, "AGENT_PROXY=http://"+way)
		}
		args := append(append([]string{"agent"}, common(url, id)...), "--allow", target)
		return office.Start(t, harness.Spec{Name: "agent " + id, Path: programs.Postern, Env: env, Args: append(args, more...)})
	}
	bare, web := "tls://hub.test:"+port(hub.Addr), "wss://hub.test:"+port(lb)
	agents := map[string]*harness.Process{
		"bare": start("bare", bare, good+squid.Addr),
		"web":  start("web", web, good+strict.Addr, "--proxy-ca-file", companyCA),
	}
	// The other ways are closed, and the agents say so.
	for name, tt := range map[string]struct {
		p    *harness.Process
		want string
	}{
		"no proxy":       {start("none", bare, ""), `does not resolve|failed to look up`},
		"wrong password": {start("wrong", web, "site:guess@"+squid.Addr), `407`},
		"port":           {start("port", bare, good+strict.Addr), `answered CONNECT hub.test:\d+ with 403`},
		"unknown CA":     {start("company", web, good+strict.Addr), `around the WebSocket`},
	} {
		tt.p.WaitLog(t, tt.want, 30*time.Second)
		if strings.Contains(tt.p.Log(), "s3cret") {
			t.Errorf("%s: the log has the proxy's password", name)
		}
		tt.p.Kill()
	}

	for id, agent := range agents {
		agent.WaitLog(t, `bus connected`, 30*time.Second)
		t.Logf("%s: connected", id)
	}
	forwards := map[string]string{"bare": harness.FreeAddr(t), "web": harness.FreeAddr(t)}
	var args []string
	for id, addr := range forwards {
		args = append(args, "--forward", addr+"="+id+"/"+target)
	}
	proxy := hub.StartProxy(t, harness.PartySpec{AgentID: "web", Args: args})
	open := map[string]net.Conn{}
	for id, addr := range forwards {
		for range 5 {
			if err := harness.PingEcho(addr, 10*time.Second); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
		}
		conn := harness.Dial(t, addr)
		defer conn.Close()
		ping(t, conn)
		open[id] = conn
	}
	// Silence: no byte of any client for longer than nginx waits.
	time.Sleep(idle + 10*time.Second)
	for id, conn := range open {
		ping(t, conn)
		if strings.Contains(agents[id].Log(), "bus lost") {
			t.Errorf("%s: the bus did not outlive a time-out of %v", id, idle)
		}
		if err := harness.PingEcho(forwards[id], 10*time.Second); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	doctor := append([]string{"doctor"}, append(common(web, "web"), "--proxy-ca-file", companyCA, "--target", target)...)
	stdout, stderr, err := office.Try(t, time.Minute, []string{"AGENT_PROXY=http://" + good + strict.Addr}, programs.Postern, doctor...)
	if err != nil || !strings.Contains(stdout, "websocket") {
		t.Errorf("doctor: %v\n%s%s", err, stdout, stderr)
	}
	checkLogs(t, hub, hub.Process, proxy.Process, agents["bare"], agents["web"])
	if n := strict.Connections(t, "403", port(hub.Addr)); n == 0 {
		t.Error("the strict proxy refused nothing")
	}
}

// ping sends a line over a connection to an echo, and waits for it.
func ping(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	line := []byte("are you there?")
	if _, err := conn.Write(line); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, line); err != nil {
		t.Fatal(err)
	}
}

// TestWebSocketThroughput moves the same bytes by TLS, by WebSocket, and by
// WebSocket through nginx, in turns, and tells how fast each was. Both parties go
// the same way, so a byte passes it twice.
func TestWebSocketThroughput(t *testing.T) {
	deadline(t)
	flood, sink := harness.Serve(t, harness.Flood), harness.Serve(t, harness.Sink)
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	lb, companyCA := terminator(t, hub, time.Minute)
	ways := []struct{ name, url string }{
		{"tls", hub.URL()}, {"wss", "wss://" + hub.Addr}, {"wss-nginx", "wss://localhost:" + port(lb)},
	}
	forwards := map[string][]string{}
	for _, way := range ways {
		spec := harness.PartySpec{AgentID: way.name, Allow: rules([]string{flood, sink}), Args: []string{"--connect-url", way.url, "--ca-file", hub.CA(), "--proxy-ca-file", companyCA}}
		hub.StartAgent(t, spec)
		args, addrs := forwardArgs(t, way.name, []string{flood, sink})
		spec.Allow, spec.Args = nil, append(spec.Args, args...)
		hub.StartProxy(t, spec)
		forwards[way.name] = addrs
	}
	const span = 1500 * time.Millisecond
	best := map[string][2]float64{}
	for range 3 {
		for _, way := range ways {
			down, err := rate(harness.Dial(t, forwards[way.name][0]), span, io.Reader.Read)
			if err != nil {
				t.Fatalf("%s: download: %v", way.name, err)
			}
			up, err := rate(harness.Dial(t, forwards[way.name][1]), span, func(r io.Reader, b []byte) (int, error) { return r.(net.Conn).Write(b) })
			if err != nil {
				t.Fatalf("%s: upload: %v", way.name, err)
			}
			was := best[way.name]
			best[way.name] = [2]float64{max(was[0], down), max(was[1], up)}
		}
	}
	for _, way := range ways {
		t.Logf("%-10s %6.0f MB/s down, %6.0f MB/s up", way.name, best[way.name][0], best[way.name][1])
		if best[way.name][0] < 1 || best[way.name][1] < 1 {
			t.Errorf("%s hardly moves", way.name)
		}
	}
}

// rate does the same with a connection for a while, and returns MB per second.
func rate(conn net.Conn, span time.Duration, do func(io.Reader, []byte) (int, error)) (float64, error) {
	defer conn.Close()
	b := make([]byte, 256<<10)
	_ = conn.SetDeadline(time.Now().Add(span + 10*time.Second))
	begin, total := time.Now(), 0
	for time.Since(begin) < span {
		n, err := do(conn, b)
		if total += n; err != nil {
			return 0, err
		}
	}
	return float64(total) / 1e6 / time.Since(begin).Seconds(), nil
}

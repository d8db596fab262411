package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// TestPostgres runs PostgreSQL's own clients through `postern forward`.
func TestPostgres(t *testing.T) {
	deadline(t)
	db := harness.StartPostgres(t)
	psql := harness.Need(t, "postgresql-client-15", "psql")
	pgbench := harness.Need(t, "postgresql-15", "pgbench")
	hub := harness.StartHub(t, programs, harness.HubSpec{})
	agent := hub.StartAgent(t, harness.PartySpec{Allow: rules([]string{db.Addr})})
	forward, addr := hub.StartForward(t, "edge", "tcp:"+db.Addr)
	url := "postgresql://postgres@" + addr + "/postgres"

	if got := strings.TrimSpace(harness.Output(t, 30*time.Second, psql, "-At", "-c", "select 6*7", url)); got != "42" {
		t.Errorf("psql through the tunnel: %q", got)
	}
	// A result of 60 MB, and a COPY of it back in.
	dump := filepath.Join(t.TempDir(), "rows")
	harness.Output(t, time.Minute, psql, "-q", "-c", `create table big as select g, repeat(md5(g::text), 19) as text from generate_series(1, 100000) g`, url)
	harness.Output(t, time.Minute, psql, "-q", "-c", `\copy big to '`+dump+`'`, url)
	harness.Output(t, time.Minute, psql, "-q", "-c", `create table again (like big)`, "-c", `\copy again from '`+dump+`'`, url)
	same := harness.Output(t, time.Minute, psql, "-At", "-c", `select count(*) from (table big except table again) x`, url)
	if strings.TrimSpace(same) != "0" {
		t.Errorf("%s rows differ after a copy there and back", strings.TrimSpace(same))
	}
	harness.Output(t, time.Minute, pgbench, "-i", "-q", "-s", "5", url)
	out := harness.Output(t, 2*time.Minute, pgbench, "-c", "20", "-j", "2", "-T", "10", url)
	t.Log(out)
	if !regexp.MustCompile(`number of failed transactions: 0 `).MatchString(out) {
		t.Error("pgbench reports failed transactions")
	}
	// A connection per transaction opens streams as fast as they come.
	out = harness.Output(t, 2*time.Minute, pgbench, "-c", "20", "-j", "2", "-C", "-S", "-T", "5", url)
	t.Log(out)
	checkLogs(t, hub, hub.Process, agent.Process, forward)
}

// TestWebThroughProxies fetches files with curl through each kind of proxy.
func TestWebThroughProxies(t *testing.T) {
	curl := harness.Need(t, "curl", "curl")
	dir := t.TempDir()
	big, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := harness.SendRandom(big, 100<<20, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := big.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "small"), []byte("hello from the private network\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	web := harness.StartNginx(t, dir)
	s, _ := newSetup(t, web)

	proxies := map[string][]string{
		"absolute form":  {"-x", "http://" + s.proxy.HTTP},
		"CONNECT":        {"-x", "http://" + s.proxy.HTTP, "--proxytunnel"},
		"SOCKS5":         {"-x", "socks5://" + s.proxy.SOCKS5},
		"SOCKS5 by name": {"-x", "socks5h://" + s.proxy.SOCKS5},
	}
	for name, args := range proxies {
		t.Run(name, func(t *testing.T) {
			fetch := func(more ...string) string {
				return harness.Output(t, time.Minute, curl, append(append([]string{"-sSf", "--max-time", "50"}, args...), more...)...)
			}
			if got := fetch("http://" + web + "/small"); got != "hello from the private network\n" {
				t.Errorf("small file: %q", got)
			}
			if got := fetch("http://" + web + "/empty"); got != "" {
				t.Errorf("empty file: %q", got)
			}
			if got := fetch("http://"+web+"/small", "http://"+web+"/small"); strings.Count(got, "hello") != 2 {
				t.Errorf("two files over one connection: %q", got)
			}
			file := filepath.Join(t.TempDir(), "big")
			fetch("-o", file, "http://"+web+"/big")
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := sha256.Sum256(content); hex.EncodeToString(got[:]) != sum {
				t.Error("the big file differs")
			}
			if got := fetch("-r", "5-8", "http://"+web+"/small"); got != " fro" {
				t.Errorf("a range: %q", got)
			}
		})
	}
}

// TestRedisThroughSOCKS5 speaks Redis' protocol, in which the client waits for
// no banner, through SOCKS5.
func TestRedisThroughSOCKS5(t *testing.T) {
	curl := harness.Need(t, "curl", "curl")
	redis := harness.StartRedis(t)
	s, _ := newSetup(t, redis)
	out := harness.Output(t, 30*time.Second, curl, "-sS", "--max-time", "20", "-x", "socks5h://"+s.proxy.SOCKS5, "dict://"+redis+"/set:greeting:hello")
	if !strings.Contains(out, "+OK") {
		t.Errorf("SET: %q", out)
	}
	out = harness.Output(t, 30*time.Second, curl, "-sS", "--max-time", "20", "-x", "socks5h://"+s.proxy.SOCKS5, "dict://"+redis+"/get:greeting")
	if !strings.Contains(out, "hello") {
		t.Errorf("GET: %q", out)
	}
}

// TestRouting reaches several agents through one proxy: by host suffix and by
// the proxy user's name, in a proxy of its own and in the hub's.
func TestRouting(t *testing.T) {
	deadline(t)
	curl := harness.Need(t, "curl", "curl")
	hubHTTP := harness.FreeAddr(t)
	hub := harness.StartHub(t, programs, harness.HubSpec{Args: []string{"--http", hubHTTP}})
	var webs []string
	for _, agent := range []string{"edge", "plant"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(agent), 0o600); err != nil {
			t.Fatal(err)
		}
		web := harness.StartNginx(t, dir)
		webs = append(webs, web)
		// The hub's proxy keeps HTTP connections open for reuse, and an agent
		// waits for its streams when it stops.
		hub.StartAgent(t, harness.PartySpec{AgentID: agent, Args: []string{"--drain-timeout", "1s"}, Allow: []string{
			"tcp:" + web, "tcp:localhost:" + port(web),
		}})
	}
	proxy := hub.StartProxy(t, harness.PartySpec{AgentID: "edge"})
	fetch := func(t *testing.T, proxy, url string) string {
		t.Helper()
		return harness.Output(t, 30*time.Second, curl, "-sSf", "--max-time", "20", "-x", proxy, url+"/name")
	}
	for name, tt := range map[string]struct{ proxy, url, want string }{
		"default agent":       {"http://" + proxy.HTTP, "http://" + webs[0], "edge"},
		"host suffix":         {"http://" + proxy.HTTP, "http://localhost.plant.postern.internal:" + port(webs[1]), "plant"},
		"user name":           {"http://plant:@" + proxy.HTTP, "http://" + webs[1], "plant"},
		"user name in SOCKS5": {"socks5h://plant:x@" + proxy.SOCKS5, "http://" + webs[1], "plant"},
		"hub, user name":      {"http://plant:@" + hubHTTP, "http://" + webs[1], "plant"},
		"hub, ORG/AGENT":      {"http://default%2Fedge:@" + hubHTTP, "http://" + webs[0], "edge"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fetch(t, tt.proxy, tt.url); got != tt.want {
				t.Errorf("got the file of %q, want %q's", got, tt.want)
			}
		})
	}
}

// port returns the port of HOST:PORT.
func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

package e2e_test

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"postern.dev/postern/test/e2e/harness"
)

// getVariable makes the tests' own program a Go program that gets URLs, and nothing else.
const getVariable = "POSTERN_E2E_GET"

// getAll is that program. What comes of a request is the proxy's to tell.
func getAll(urls string) int {
	client := &http.Client{Timeout: time.Second}
	var all sync.WaitGroup
	for url := range strings.FieldsSeq(urls) {
		all.Go(func() {
			if response, err := client.Get(url); err == nil {
				response.Body.Close()
			}
		})
	}
	all.Wait()
	return 0
}

// The others get the URLs in their arguments, all at once.
const (
	pythonGet = `
import sys, concurrent.futures, urllib.request, ssl
context = ssl._create_unverified_context()
def get(url):
    try: urllib.request.urlopen(url, timeout=1, context=context).read()
    except Exception: pass
with concurrent.futures.ThreadPoolExecutor(32) as pool: list(pool.map(get, sys.argv[1:]))
`
	requestsGet = `
import sys, concurrent.futures, requests
def get(url):
    try: requests.get(url, timeout=1)
    except Exception: pass
with concurrent.futures.ThreadPoolExecutor(32) as pool: list(pool.map(get, sys.argv[1:]))
`
	nodeGet = `
const signal = AbortSignal.timeout(1500)
Promise.allSettled(process.argv.slice(1).map((url) => fetch(url, { signal }))).then(() => process.exit(0))
`
)

// TestProgramsAndTheirProxy gives real programs the variables of a pod that a Proxy selects, and looks
// which addresses they reach through the proxy. The table in the guide injection.md says the same.
func TestProgramsAndTheirProxy(t *testing.T) {
	t.Parallel()
	noProxy, err := os.ReadFile("../../operator/inject/testdata/no-proxy.txt") // held to the operator's code there
	if err != nil {
		t.Fatal(err)
	}
	const (
		curl = 1 << iota
		golang
		urllib
		requests
		node
		all = curl | golang | urllib | requests
	)
	// Which programs go through the proxy. The others go straight.
	want := map[string]int{
		"kubernetes.default.svc.cluster.local:443": all,
		"kubernetes.default.svc:443":               all,
		"db.example.com:443":                       all,
		"127.0.0.2:443":                            0, // the API server, in these tests
		"127.0.0.3:443":                            all &^ golang,
		"localhost:443":                            0,
		"127.0.0.1:443":                            0,
		"[::1]:443":                                0,
		"169.254.169.254:443":                      0,
		"[fd00:ec2::254]:443":                      0,
		"metadata.google.internal:443":             0,
		"intern.example.org:443":                   0,
		"sub.intern.example.org:443":               0,
		"notintern.example.org:443":                all &^ requests,
		"corp.example.org:443":                     golang,
		"sub.corp.example.org:443":                 0,
		"sub.wild.example.org:443":                 all &^ golang,
		"10.1.2.3:443":                             urllib,
		"10.2.2.3:443":                             all,
	}
	var urls []string
	for target := range want {
		urls = append(urls, "https://"+target+"/")
	}
	python := harness.Need(t, "python3", "/usr/bin/python3")
	harness.NeedFile(t, "python3-requests", "/usr/lib/python3/dist-packages/requests/__init__.py")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []struct {
		bit     int
		name    string
		command []string
	}{
		{curl, "curl", append([]string{harness.Need(t, "curl", "curl"), "--silent", "--insecure", "--max-time", "1", "--parallel", "--parallel-immediate"}, urls...)},
		{golang, "Go", []string{self}},
		{urllib, "Python's urllib", append([]string{python, "-c", pythonGet}, urls...)},
		{requests, "Python's requests", append([]string{python, "-c", requestsGet}, urls...)},
		{node, "Node's fetch", append([]string{harness.Need(t, "nodejs", "node"), "-e", nodeGet}, urls...)},
	} {
		t.Run(program.name, func(t *testing.T) {
			t.Parallel()
			proxy := watchProxy(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, program.command[0], program.command[1:]...)
			url := "http://plant:" + proxyPassword + "@" + proxy.ln.Addr().String()
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), getVariable + "=" + strings.Join(urls, " ")}
			for name, value := range map[string]string{"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": strings.TrimSpace(string(noProxy))} {
				cmd.Env = append(cmd.Env, name+"="+value, strings.ToLower(name)+"="+value)
			}
			// What it says of requests that failed does not matter, nor that it tells by its exit code.
			if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			asked := proxy.asked()
			for target, programs := range want {
				if through := asked[target]; through != (programs&program.bit != 0) {
					t.Errorf("%s: through the proxy: %t", target, through)
				}
			}
		})
	}
}

const proxyPassword = "pass-word_1"

// watchedProxy is a proxy that reaches nothing, and remembers who was asked for.
type watchedProxy struct {
	ln net.Listener

	mu   sync.Mutex
	seen map[string]bool
}

func watchProxy(t *testing.T) *watchedProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &watchedProxy{ln: ln, seen: map[string]bool{}}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); work.Wait() })
	return p
}

func (p *watchedProxy) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	buffered := bufio.NewReader(conn)
	for {
		request, err := http.ReadRequest(buffered)
		if err != nil {
			return
		}
		request.Header.Set("Authorization", request.Header.Get("Proxy-Authorization"))
		user, password, _ := request.BasicAuth()
		answer := "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
		if user != "plant" || password != proxyPassword {
			answer = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"
		} else {
			p.mu.Lock()
			p.seen[request.Host] = true
			p.mu.Unlock()
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func (p *watchedProxy) asked() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

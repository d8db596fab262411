package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) *Network {
	t.Helper()
	n, err := Listen(t.Context(), []string{"api.example.org"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestPage(t *testing.T) {
	n := start(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + n.Web.String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || !strings.Contains(string(body), "private network") {
		t.Errorf("%s %s: %v", res.Status, body, err)
	}
}

func TestKubernetes(t *testing.T) {
	n := start(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(n.CA)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "api.example.org"},
	}}
	for _, tt := range []struct {
		method, path, accept string
		status               int
		kind                 string
	}{
		{"GET", "/version", "", 200, ""},
		{"GET", "/api", "", 200, "APIVersions"},
		{"GET", "/apis", "", 200, "APIGroupList"},
		{"GET", "/api/v1", "", 200, "APIResourceList"},
		{"GET", "/api/v1/namespaces", "", 200, "NamespaceList"},
		{"GET", "/api/v1/namespaces?limit=500", "application/json;as=Table;v=v1;g=meta.k8s.io", 200, "Table"},
		{"GET", "/api/v1/namespaces/default", "", 200, "Namespace"},
		{"GET", "/api/v1/namespaces/none", "", 404, "Status"},
		{"GET", "/api/v1/namespaces?watch=true", "", 405, "Status"},
		{"GET", "/api/v1/pods", "", 404, "Status"},
		{"POST", "/api/v1/namespaces", "", 405, "Status"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://"+n.Kubernetes.String()+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", tt.accept)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body struct{ Kind string }
		err = json.NewDecoder(res.Body).Decode(&body)
		res.Body.Close()
		if err != nil || res.StatusCode != tt.status || body.Kind != tt.kind {
			t.Errorf("%s %s: %s, kind %q, %v", tt.method, tt.path, res.Status, body.Kind, err)
		}
	}
}

// question is what a client of PostgreSQL sends for one query.
func question(query string) []byte {
	var b []byte
	b = binary.BigEndian.AppendUint32(b, 8)
	b = binary.BigEndian.AppendUint32(b, codeSSL)
	params := "user\x00demo\x00\x00"
	b = binary.BigEndian.AppendUint32(b, uint32(8+len(params)))
	b = binary.BigEndian.AppendUint32(b, codeProtocol3)
	b = append(b, params...)
	var r reply
	r.message('Q', cstring(query))
	r.message('X')
	return append(b, r.bytes...)
}

func TestDatabase(t *testing.T) {
	n := start(t)
	conn, err := net.Dial("tcp", n.Database.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(question("select 1")); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"N", "server_version", "not PostgreSQL", "select 1", "SELECT 1\x00"} {
		if !bytes.Contains(all, []byte(want)) {
			t.Errorf("no %q in %q", want, all)
		}
	}
}

func TestPsql(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if errors.Is(err, exec.ErrNotFound) {
		t.Log("psql is not installed; TestDatabase covers the protocol")
		return
	}
	n := start(t)
	host, port, err := net.SplitHostPort(n.Database.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, psql, "-X", "-w", "-h", host, "-p", port, "-U", "demo", "-c", "select 6 * 7").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "not PostgreSQL") || !strings.Contains(string(out), "(1 row)") {
		t.Errorf("psql: %v\n%s", err, out)
	}
}

func FuzzSession(f *testing.F) {
	f.Add(question("select 1"))
	f.Add(question(""))
	f.Add([]byte{0, 0, 0, 8, 0, 3, 0, 0, 'P', 0, 0, 0, 4, 'S', 0, 0, 0, 4})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(_ *testing.T, in []byte) {
		_ = session(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard}, "client")
	})
}

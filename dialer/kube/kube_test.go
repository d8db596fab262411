package kube_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"postern.dev/postern/dialer"
	"postern.dev/postern/dialer/kube"
	"postern.dev/postern/internal/testnet/world"
)

func TestMain(m *testing.M) {
	// The SPDY library waits a second for somebody to ask why a connection could not be closed twice.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
}

// apiServer is as much of an API server as these tests need: it lists one namespace, and
// keeps what it was asked for.
type apiServer struct {
	*httptest.Server
	ca []byte

	mu   sync.Mutex
	seen []string // "METHOD PATH AUTHORIZATION"
}

func newAPIServer() *apiServer {
	s := &apiServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasSuffix(r.URL.Path, "/api/v1/namespaces") {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"no"}`)
			return
		}
		_, _ = io.WriteString(w, `{"kind":"NamespaceList","apiVersion":"v1","metadata":{},"items":[{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"shop"}}]}`)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return s
}

// requests returns what has been asked for since the last call.
func (s *apiServer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// namespaces lists the namespaces with a client of client-go.
func namespaces(ctx context.Context, c *rest.Config) ([]string, error) {
	httpClient, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	defer httpClient.CloseIdleConnections()
	client, err := dynamic.NewForConfigAndClient(c, httpClient)
	if err != nil {
		return nil, err
	}
	list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, one := range list.Items {
		names = append(names, one.GetName())
	}
	return names, nil
}

// TestGateway: requests and upgrades go to the cluster's URL with the token of the
// moment.
func TestGateway(t *testing.T) {
	hub := newAPIServer()
	defer hub.Close()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, hub.ca, 0o600); err != nil {
		t.Fatal(err)
	}
	token := "aa.bb.cc"
	g, err := dialer.NewGateway(t.Context(), dialer.Options{
		ConnectURL: hub.URL, CAFile: ca, Organization: "acme",
		TokenSource: func(context.Context) (string, error) {
			if token == "" {
				return "", errors.New("signed out")
			}
			return token, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := kube.Gateway(g, "a/b"); err == nil {
		t.Errorf("%s", c.Host)
	}
	c, err := kube.Gateway(g, "office")
	if err != nil {
		t.Fatal(err)
	}
	got, err := namespaces(t.Context(), c)
	if err != nil || len(got) != 1 || got[0] != "shop" {
		t.Errorf("%v, %v", got, err)
	}
	if seen := hub.requests(); len(seen) != 1 || seen[0] != "GET /acme:office/api/v1/namespaces Bearer aa.bb.cc" {
		t.Errorf("asked for %q", seen)
	}
	exec, err := remotecommand.NewWebSocketExecutor(c, "GET", c.Host+"/api/v1/namespaces/shop/pods/web/exec")
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("exec was let through")
	}
	if seen := hub.requests(); len(seen) != 1 || seen[0] != "GET /acme:office/api/v1/namespaces/shop/pods/web/exec Bearer aa.bb.cc" {
		t.Errorf("exec asked for %q", seen)
	}

	token = ""
	g, err = dialer.NewGateway(t.Context(), dialer.Options{
		ConnectURL: hub.URL, CAFile: ca, TokenSource: func(context.Context) (string, error) { return "", errors.New("signed out") },
	})
	if err != nil {
		t.Fatal(err)
	}
	if c, err = kube.Gateway(g, "office"); err != nil {
		t.Fatal(err)
	}
	if _, err := namespaces(t.Context(), c); err == nil || !strings.Contains(err.Error(), "signed out") {
		t.Errorf("without a token: %v", err)
	}
	if seen := hub.requests(); len(seen) != 0 {
		t.Errorf("without a token: asked for %q", seen)
	}
}

// TestTunnel: requests reach the API server end to end; what dials by itself reaches
// nothing, rather than another server of the same address.
func TestTunnel(t *testing.T) {
	server := newAPIServer()
	defer server.Close()
	w, err := world.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	d, err := dialer.New(t.Context(), dialer.Options{ConnectURL: w.ConnectURL, CAFile: w.CAFile, Token: w.Token, Name: "controller"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	base := &rest.Config{Host: server.URL, BearerToken: "of-the-cluster", TLSClientConfig: rest.TLSClientConfig{CAData: server.ca}}
	c := kube.Tunnel(d, world.Agent, base)
	got, err := namespaces(t.Context(), c)
	if err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if seen := server.requests(); len(seen) != 1 || seen[0] != "GET /api/v1/namespaces Bearer of-the-cluster" {
		t.Errorf("asked for %q", seen)
	}
	if base.Dial != nil || base.Host != server.URL {
		t.Error("the original has changed")
	}
	exec, err := remotecommand.NewWebSocketExecutor(c, "GET", c.Host+"/api/v1/namespaces/shop/pods/web/exec")
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("exec went somewhere")
	}
	if seen := server.requests(); len(seen) != 0 {
		t.Errorf("exec asked for %q", seen)
	}

	// A certificate for another name is refused: the tunnel adds no trust.
	wrong := rest.CopyConfig(base)
	wrong.ServerName = "other.example.net"
	if _, err := namespaces(t.Context(), kube.Tunnel(d, world.Agent, wrong)); err == nil {
		t.Error("another certificate is good")
	}
	var failure *dialer.Error
	denied := &rest.Config{Host: "https://192.0.2.7:6443"}
	if _, err := namespaces(t.Context(), kube.Tunnel(d, world.Agent, denied)); !errors.As(err, &failure) || failure.Code != dialer.CodeDenied {
		t.Errorf("not allowed: %v", err)
	}
}

// A controller reaches a cluster at the gateway as itself.
func ExampleGateway() {
	hub := newAPIServer() // https://hub.example.org
	defer hub.Close()
	dir, err := os.MkdirTemp("", "example-*")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, hub.ca, 0o600); err != nil {
		fmt.Println(err)
		return
	}

	gateway, err := dialer.NewGateway(context.Background(), dialer.Options{ConnectURL: hub.URL, CAFile: ca, Token: "aa.bb.cc"})
	if err != nil {
		fmt.Println(err)
		return
	}
	config, err := kube.Gateway(gateway, "office")
	if err != nil {
		fmt.Println(err)
		return
	}
	names, err := namespaces(context.Background(), config) // with any client of client-go
	fmt.Println(names, err)
	// Output: [shop] <nil>
}

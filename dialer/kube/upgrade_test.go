package kube_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	httpspdy "k8s.io/streaming/pkg/httpstream/spdy"

	"postern.dev/postern/dialer"
	"postern.dev/postern/dialer/kube"
	"postern.dev/postern/internal/testnet/world"
)

// serveExec is the exec of an API server: what comes in goes out, behind who asked.
func serveExec(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 3)
	conn := httpspdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
		go func() { <-replied; streams <- s }()
		return nil
	})
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close() }()
	byType := map[string]httpstream.Stream{}
	for len(byType) < 3 {
		select {
		case s := <-streams:
			byType[s.Headers().Get("streamType")] = s
		case <-conn.CloseChan():
			return
		}
	}
	fmt.Fprintf(byType["stdout"], "%s %s ", r.Header.Get("Authorization"), r.URL.Path)
	_, _ = io.Copy(byType["stdout"], byType["stdin"])
	_ = byType["stdout"].Close()
	_, _ = io.WriteString(byType["error"], `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	_ = byType["error"].Close()
	<-conn.CloseChan()
}

// TestTunnelExec: exec goes through the tunnel with the round tripper that is made for it,
// and its certificate is verified.
func TestTunnelExec(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(serveExec))
	defer server.Close()
	w, err := world.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	d, err := dialer.New(t.Context(), dialer.Options{ConnectURL: w.ConnectURL, CAFile: w.CAFile, Token: w.Token, Name: "exec"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	base := &rest.Config{Host: server.URL, BearerToken: "of-the-cluster", TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}}
	exec := func(c *rest.Config) (string, error) {
		u, err := url.Parse(c.Host + "/api/v1/namespaces/shop/pods/web/exec")
		if err != nil {
			t.Fatal(err)
		}
		transport, upgrader, err := kube.RoundTripperFor(c)
		if err != nil {
			t.Fatal(err)
		}
		e, err := remotecommand.NewSPDYExecutorForTransports(transport, upgrader, http.MethodPost, u)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: bytes.NewReader([]byte("hello")), Stdout: &out})
		return out.String(), err
	}
	const want = "Bearer of-the-cluster /api/v1/namespaces/shop/pods/web/exec hello"
	if out, err := exec(kube.Tunnel(d, world.Agent, base)); err != nil || out != want {
		t.Errorf("%q, %v", out, err)
	}
	wrong := rest.CopyConfig(base)
	wrong.ServerName = "other.example.net"
	if out, err := exec(kube.Tunnel(d, world.Agent, wrong)); err == nil {
		t.Errorf("with another certificate: %q", out)
	}
	base.Proxy = http.ProxyURL(nil)
	if out, err := exec(base); err != nil || out != want { // straight, as with client-go
		t.Errorf("without a tunnel: %q, %v", out, err)
	}
}

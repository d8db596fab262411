//go:build linux

package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"postern.dev/postern/internal/testnet"
)

// Forms of answers that clients ask for.
const (
	asJSON      = "application/json"
	asProtobuf  = "application/vnd.kubernetes.protobuf"
	asTable     = "application/json;as=Table;v=v1;g=meta.k8s.io"
	asDiscovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	asSchema    = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// testForms asks the API server for the same through the gateway and straight: protobuf, tables,
// schemas, compressed and not, and whether something has changed. The answers must be the same to
// the byte, and so must be the header fields by which clients read and cache them.
func testForms(t *testing.T, w *alone) {
	agent := w.startAgent(t, "forms", w.addr, w.api.Addr())
	way := link(t, testnet.Config{Target: w.addr})
	kubectl := w.kubectl(t, way.Addr(), "forms")
	w.waitUntilUseful(t, kubectl, agent)
	w.inside(t, "", "create", "namespace", "forms")
	for i := range 3 { // more than the server sends without compressing it
		w.inside(t, "", "create", "configmap", fmt.Sprintf("large-%d", i), "-n", "forms", "--from-literal=text="+strings.Repeat("0123456789", 9000))
	}

	gateway, direct := w.config(t, w.addr, "forms"), w.admin(t)
	index := fetch(t, direct, "/openapi/v3", asJSON, "", "")
	_, schema, found := strings.Cut(string(index.body), `"apis/apps/v1":{"serverRelativeURL":"`)
	if !found {
		t.Fatalf("no apps/v1 in %.200s", index.body)
	}
	schema, _, _ = strings.Cut(schema, `"`)
	paths := []struct{ path, accept string }{
		{"/version", asJSON},
		{"/api", asDiscovery}, {"/apis", asDiscovery}, {"/apis", asJSON}, {"/api/v1", asProtobuf},
		{"/openapi/v3", asJSON}, {schema, asJSON}, {schema, asSchema}, {"/openapi/v2", asJSON},
		{"/api/v1/namespaces/forms/configmaps", asJSON}, {"/api/v1/namespaces/forms/configmaps", asProtobuf},
		{"/api/v1/namespaces/forms/configmaps/large-0", asProtobuf}, {"/api/v1/namespaces/forms/configmaps", asTable},
		{"/api/v1/namespaces/forms/configmaps/none", asProtobuf},
	}
	zipped, unchanged := 0, 0
	for _, p := range paths {
		for _, encoding := range []string{"gzip", "identity"} {
			want := fetch(t, direct, p.path, p.accept, encoding, "")
			got := fetch(t, gateway, p.path, p.accept, encoding, "")
			same(t, p.path, p.accept, encoding, got, want)
			if want.header.Get("Content-Encoding") == "gzip" {
				zipped++
			}
			if etag := want.header.Get("ETag"); etag != "" {
				want, got = fetch(t, direct, p.path, p.accept, encoding, etag), fetch(t, gateway, p.path, p.accept, encoding, etag)
				same(t, p.path, p.accept, encoding+" "+etag, got, want)
				if got.status == http.StatusNotModified {
					unchanged++
				}
			}
		}
	}
	if zipped < 2 || unchanged < 5 {
		t.Errorf("%d answers were compressed and %d said that nothing has changed: too few to tell", zipped, unchanged)
	}
	testCaches(t, kubectl, way)
}

// testCaches: kubectl keeps what the API server has, and the schemas of it, so that it need not
// ask twice.
func testCaches(t *testing.T, kubectl client, way *testnet.Link) {
	explain := func() int64 {
		before := way.Delivered(testnet.Down)
		if out := kubectl.must(t, "explain", "deployments.spec.template", "--api-version=apps/v1"); !strings.Contains(out, "PodTemplateSpec") {
			t.Errorf("kubectl explain: %s", out)
		}
		return way.Delivered(testnet.Down) - before
	}
	first, second := explain(), explain()
	t.Logf("kubectl explain took %d bytes, and %d the second time", first, second)
	if second > first/2 {
		t.Errorf("kubectl explain took %d bytes the second time, and %d the first: it keeps nothing", second, first)
	}
}

// answer is what an API server said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// fetch gets a path from a cluster, without undoing compression.
func fetch(t *testing.T, config *rest.Config, path, accept, encoding, etag string) answer {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(limit(t, quick), http.MethodGet, config.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Accept": accept, "Accept-Encoding": encoding, "If-None-Match": etag} {
		if value != "" {
			request.Header.Set(name, value)
		}
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("%s as %s: %v", path, accept, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s as %s: %v", path, accept, err)
	}
	return answer{response.StatusCode, response.Header, body}
}

// same compares an answer through the gateway with one that came straight.
func same(t *testing.T, path, accept, how string, got, want answer) {
	t.Helper()
	if got.status != want.status || !bytes.Equal(got.body, want.body) {
		t.Errorf("%s as %s, %s: %d with %d bytes, and not %d with %d bytes", path, accept, how, got.status, len(got.body), want.status, len(want.body))
	}
	for _, name := range []string{"Content-Type", "Content-Encoding", "Content-Length", "Cache-Control", "ETag", "Last-Modified", "Vary", "X-From-Cache"} {
		if g, w := got.header.Values(name), want.header.Values(name); fmt.Sprint(g) != fmt.Sprint(w) {
			t.Errorf("%s as %s, %s: %s is %q, and not %q", path, accept, how, name, g, w)
		}
	}
}

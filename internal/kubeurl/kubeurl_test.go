package kubeurl_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/kubeurl"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		target string
		want   kubeurl.URL
	}{
		{"/plant", kubeurl.URL{Cluster: "plant", Rest: "/"}},
		{"/plant/", kubeurl.URL{Cluster: "plant", Rest: "/"}},
		{"/plant?timeout=1s", kubeurl.URL{Cluster: "plant", Rest: "/?timeout=1s"}},
		{"/plant/version?", kubeurl.URL{Cluster: "plant", Rest: "/version?"}},
		{"/acme:plant/api", kubeurl.URL{Organization: "acme", Cluster: "plant", Rest: "/api"}},
		{"/acme%3Aplant/api", kubeurl.URL{Organization: "acme", Cluster: "plant", Rest: "/api"}},
		{"/acme%3aplant/api", kubeurl.URL{Organization: "acme", Cluster: "plant", Rest: "/api"}},

		// Byte for byte.
		{"/plant//api//v1/", kubeurl.URL{Cluster: "plant", Rest: "//api//v1/"}},
		{"/plant/api/v1/nodes/a%3Ab%2Fc%20d", kubeurl.URL{Cluster: "plant", Rest: "/api/v1/nodes/a%3Ab%2Fc%20d"}},
		{"/plant/x%2f%2F%7e~%41?a=%2F..&b=?&c", kubeurl.URL{Cluster: "plant", Rest: "/x%2f%2F%7e~%41?a=%2F..&b=?&c"}},
		{"/plant/a|b\"<>^`{}", kubeurl.URL{Cluster: "plant", Rest: "/a|b\"<>^`{}"}},
		{"/plant/\xc3\xa9/%ff", kubeurl.URL{Cluster: "plant", Rest: "/\xc3\xa9/%ff"}},
		{"/plant/%252e%252e/x", kubeurl.URL{Cluster: "plant", Rest: "/%252e%252e/x"}},
		{"/plant/./...//..a/b..", kubeurl.URL{Cluster: "plant", Rest: "/./...//..a/b.."}},

		// Services.
		{"/plant/api/v1/namespaces/shop/services/web:8443/proxy-service/a%2Fb//c/?q=1%20", kubeurl.URL{
			Cluster: "plant", Rest: "/a%2Fb//c/?q=1%20", Service: &kubeurl.Service{Scheme: "https", Namespace: "shop", Name: "web", Port: "8443"},
		}},
		{"/plant/api/v1/namespaces/shop/services/http:web:8080/proxy-service", kubeurl.URL{
			Cluster: "plant", Rest: "/", Service: &kubeurl.Service{Scheme: "http", Namespace: "shop", Name: "web", Port: "8080"},
		}},
		{"/plant/api/v1/namespaces/shop/services/https%3Aweb%3ahttps-1/proxy-service?x", kubeurl.URL{
			Cluster: "plant", Rest: "/?x", Service: &kubeurl.Service{Scheme: "https", Namespace: "shop", Name: "web", Port: "https-1"},
		}},
		{"/plant/api/v1/namespaces/shop/services/web:80/proxy-service//evil.example/", kubeurl.URL{
			Cluster: "plant", Rest: "//evil.example/", Service: &kubeurl.Service{Scheme: "https", Namespace: "shop", Name: "web", Port: "80"},
		}},

		// What the API server proxies to itself is its own affair.
		{"/plant/api/v1/namespaces/shop/services/http:web:80/proxy/a", kubeurl.URL{Cluster: "plant", Rest: "/api/v1/namespaces/shop/services/http:web:80/proxy/a"}},
		{"/plant/api/v1/namespaces/shop/services/web:80/proxy%2Dservice/a", kubeurl.URL{Cluster: "plant", Rest: "/api/v1/namespaces/shop/services/web:80/proxy%2Dservice/a"}},
		{"/plant//api/v1/namespaces/shop/services/web:80/proxy-service/a", kubeurl.URL{Cluster: "plant", Rest: "//api/v1/namespaces/shop/services/web:80/proxy-service/a"}},
	}
	for _, tt := range tests {
		got, err := kubeurl.Parse(tt.target)
		if err != nil {
			t.Errorf("%q: %v", tt.target, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q: %s", tt.target, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const service = "/plant/api/v1/namespaces/shop/services/"
	tests := map[error][]string{
		kubeurl.ErrForm:    {"", "*", "plant/api", "http://hub/plant/api", "hub:443", "/plant/a#b"},
		kubeurl.ErrLong:    {"/plant/" + strings.Repeat("a", kubeurl.MaxLength)},
		kubeurl.ErrCluster: {"/", "//", "//plant/api", "/.", "/./plant", "/Plant/", "/plant%2Fother/", "/:plant", "/acme:", "/a:b:c", "/-/", "/acme:Plant/", "/pl%61nt/", "/a%3Ab%3Ac/", "/plant;a=b/", "/plant%20/"},
		kubeurl.ErrTraversal: {
			"/plant/..", "/plant/../other/api", "/../plant", "/plant/%2e%2e/other", "/plant/.%2E/other", "/plant/%2e./", "/plant/..;/other", "/plant/..;a=b/other",
			"/plant/..%3b/other", "/plant/a%2F..%2Fb", "/plant/..%2f..%2fother", "/plant/..%5cother", "/plant/a/%5c..", "/plant/..?x",
		},
		kubeurl.ErrByte:   {`/plant/a\b`, `/plant\mill/api`, "/plant/%00", "/plant/a%0d%0aHost:x", "/plant/\x01", "/plant/%7f"},
		kubeurl.ErrEscape: {"/plant/%", "/plant/%2", "/plant/%zz", "/%/api", "/plant/%u002e"},
		kubeurl.ErrService: {
			service + "web/proxy-service/", service + "ftp:web:80/proxy-service/", service + "http:web:80:1/proxy-service/", service + ":80/proxy-service/",
			service + "web:0/proxy-service/", service + "web:65536/proxy-service/", service + "web:080/proxy-service/", service + "web:/proxy-service/",
			service + "web.other:80/proxy-service/", service + "Web:80/proxy-service/", service + "web%2Fx:80/proxy-service/", service + "http:web:-a/proxy-service/",
			service + "http:web:a-name-that-is-too-long/proxy-service/", "/plant/api/v1/namespaces/sh.op/services/web:80/proxy-service/",
			"/plant/api/v1/namespaces//services/web:80/proxy-service/", service + "HTTP:web:80/proxy-service/",
		},
	}
	for want, targets := range tests {
		for _, target := range targets {
			if got, err := kubeurl.Parse(target); !errors.Is(err, want) {
				t.Errorf("%.100q: %+v, %v; want %v", target, got, err, want)
			}
		}
	}
}

func TestService(t *testing.T) {
	t.Parallel()
	s := kubeurl.Service{Scheme: "https", Namespace: "shop", Name: "web", Port: "8443"}
	if target, ok := s.Target(); !ok || target.String() != "tcp:web.shop.svc:8443" || s.String() != "shop/web" {
		t.Errorf("%s: %s, %t", s, target, ok)
	}
	s.Port = "https"
	if target, ok := s.Target(); ok {
		t.Errorf("a port with a name only is %s", target)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	type request = kubeurl.Request
	tests := []struct {
		method, target string
		want           request
		long, connect  bool
	}{
		{"GET", "/version", request{Verb: "get"}, false, false},
		{"GET", "/", request{Verb: "get"}, false, false},
		{"GET", "/api", request{Verb: "get"}, false, false},
		{"GET", "/api/v1", request{Verb: "get"}, false, false},
		{"GET", "/apis/apps/v1", request{Verb: "get"}, false, false},
		{"GET", "/api/v1/pods", request{Verb: "list", Version: "v1", Resource: "pods"}, false, false},
		{"HEAD", "/api/v1/pods/x", request{Verb: "get", Version: "v1", Resource: "pods", Name: "x"}, false, false},
		{"GET", "/api/v1/pods?watch=true&x=1", request{Verb: "watch", Version: "v1", Resource: "pods"}, true, false},
		{"GET", "/api/v1/pods?watch=1", request{Verb: "watch", Version: "v1", Resource: "pods"}, true, false},
		{"GET", "/api/v1/pods?watch", request{Verb: "watch", Version: "v1", Resource: "pods"}, true, false},
		{"GET", "/api/v1/pods?w%61tch=t", request{Verb: "watch", Version: "v1", Resource: "pods"}, true, false},
		{"GET", "/api/v1/pods?watch=false", request{Verb: "list", Version: "v1", Resource: "pods"}, false, false},
		{"GET", "/api/v1/watch/namespaces/a/pods", request{Verb: "watch", Version: "v1", Resource: "pods", Namespace: "a"}, true, false},
		{"DELETE", "/api/v1/namespaces/a/pods", request{Verb: "deletecollection", Version: "v1", Resource: "pods", Namespace: "a"}, false, false},
		{"DELETE", "/api/v1/namespaces/a/pods/x", request{Verb: "delete", Version: "v1", Resource: "pods", Namespace: "a", Name: "x"}, false, false},
		{"GET", "/api/v1/namespaces", request{Verb: "list", Version: "v1", Resource: "namespaces"}, false, false},
		{"GET", "/api/v1/namespaces/a", request{Verb: "get", Version: "v1", Resource: "namespaces", Namespace: "a", Name: "a"}, false, false},
		{"PUT", "/api/v1/namespaces/a/finalize", request{Verb: "update", Version: "v1", Resource: "namespaces", Namespace: "a", Name: "a", Subresource: "finalize"}, false, false},
		{"PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", request{
			Verb: "patch", Group: "apps", Version: "v1", Resource: "deployments", Namespace: "a", Name: "d", Subresource: "scale",
		}, false, false},
		{"POST", "/api/v1/namespaces/a/pods/x/exec?command=ls", request{Verb: "create", Version: "v1", Resource: "pods", Namespace: "a", Name: "x", Subresource: "exec"}, true, true},
		{"GET", "/api/v1/namespaces/a/pods/x/portforward", request{Verb: "get", Version: "v1", Resource: "pods", Namespace: "a", Name: "x", Subresource: "portforward"}, true, true},
		{"GET", "/api/v1/namespaces/a/pods/x/log?follow=true", request{Verb: "get", Version: "v1", Resource: "pods", Namespace: "a", Name: "x", Subresource: "log"}, true, false},
		{"GET", "/api/v1/namespaces/a/pods/x/log", request{Verb: "get", Version: "v1", Resource: "pods", Namespace: "a", Name: "x", Subresource: "log"}, false, false},
		{"GET", "/api/v1/nodes/n/proxy/metrics/cadvisor", request{Verb: "get", Version: "v1", Resource: "nodes", Name: "n", Subresource: "proxy"}, true, true},
		{"GET", "/api/v1/proxy/nodes/n", request{Verb: "proxy", Version: "v1", Resource: "nodes", Name: "n"}, true, true},
		{"GET", "/api/v1/nodes/a%3Ab", request{Verb: "get", Version: "v1", Resource: "nodes", Name: "a:b"}, false, false},
		{"GET", "/%zz", request{Verb: "get"}, false, false},
	}
	for _, tt := range tests {
		got := kubeurl.Describe(tt.method, tt.target)
		if got.Long() != tt.long || got.Connect() != tt.connect {
			t.Errorf("%s %s: long %t, connect %t", tt.method, tt.target, got.Long(), got.Connect())
		}
		if got.Path == "" || strings.Contains(got.Path, "?") {
			t.Errorf("%s %s: path %q", tt.method, tt.target, got.Path)
		}
		same := cmp.Comparer(func(a, b request) bool {
			return a.Verb == b.Verb && a.Group == b.Group && a.Version == b.Version && a.Namespace == b.Namespace &&
				a.Resource == b.Resource && a.Subresource == b.Subresource && a.Name == b.Name
		})
		if diff := cmp.Diff(tt.want, got, same); diff != "" {
			t.Errorf("%s %s: %s", tt.method, tt.target, diff)
		}
	}
	what := map[string]string{
		"/apis/apps/v1/namespaces/a/deployments/d/scale": "deployments.apps/scale a/d", "/api/v1/nodes/n": "nodes n", "/version": "/version ",
		"/api/v1/namespaces/a": "namespaces a", "/api/v1/namespaces/a/pods": "pods a/",
	}
	for target, want := range what {
		if r := kubeurl.Describe("GET", target); r.What()+" "+r.Object() != want {
			t.Errorf("%s: %q %q, want %q", target, r.What(), r.Object(), want)
		}
	}
}

// FuzzParse: what is accepted is sent on unchanged, and leads nowhere else, however
// often somebody decodes the path before the first slash that counts.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"/plant/api", "/acme:plant//x?y=%2e", "/acme%3Aplant/", "/plant/..%2f", "/plant/..;/", "//plant", "/plant/%2e%2e", "/plant/a|b",
		"/plant/api/v1/namespaces/shop/services/http%3Aweb:80/proxy-service/a?b", "/plant/%", "/plant?x", "/plant/watch=1?watch", "/\xff%3A",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := kubeurl.Parse(target)
		if err != nil {
			return
		}
		if !strings.HasPrefix(u.Rest, "/") {
			t.Fatalf("%q: rest %q", target, u.Rest)
		}
		tail, _ := strings.CutPrefix(u.Rest, "/")
		if !strings.HasSuffix(target, tail) {
			t.Fatalf("%q: %q is not what came", target, u.Rest)
		}
		path, _, _ := strings.Cut(target, "?")
		plain, err := url.PathUnescape(path)
		if err != nil {
			t.Fatalf("%q: %v", target, err)
		}
		for part := range strings.FieldsFuncSeq(plain, func(r rune) bool { return r == '/' || r == '\\' || r == ';' }) {
			if part == ".." && !strings.Contains(plain, ";..") {
				t.Fatalf("%q leads upwards", target)
			}
		}
		if u.Service == nil {
			first, _, _ := strings.Cut(path[1:], "/")
			if want := "/" + first; !strings.HasPrefix(target, want) || "/"+strings.TrimPrefix(target[len(want):], "/") != u.Rest {
				t.Fatalf("%q: %+v", target, u)
			}
		} else if _, err := url.Parse("http://" + u.Service.Host() + "/"); err != nil {
			t.Fatalf("%q: %v", target, err)
		}
		_ = kubeurl.Describe("GET", u.Rest).What()
	})
}

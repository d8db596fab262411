package impersonate

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/assertion"
)

func TestImpersonates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.request(ann(), nil)
	r.Header.Set("Accept", "application/json;as=Table")
	r.Header.Set("Accept-Encoding", "gzip")
	answer, body := w.send(r)
	if answer.StatusCode != http.StatusOK || body != "pods" {
		t.Fatalf("got %s %s", answer.Status, body)
	}
	seen := w.requests()[0]
	want := http.Header{
		"Authorization": {"Bearer " + agentToken}, "Impersonate-User": {"ann@example.org"}, "Impersonate-Group": {"sre", "system:authenticated"},
		"Impersonate-Extra-Postern.dev%2fprincipal": {"user:ann@example.org"}, "Accept": {"application/json;as=Table"}, "Accept-Encoding": {"gzip"},
		"User-Agent": {"Go-http-client/1.1"},
	}
	if diff := cmp.Diff(want, seen.Header); diff != "" {
		t.Error(diff)
	}
	if seen.ProtoMajor != 2 || seen.Host != w.server.api.host || seen.RequestURI != "/api/v1/pods" {
		t.Errorf("the API server sees %s %s of %s", seen.Proto, seen.RequestURI, seen.Host)
	}
	w.server.handling.Wait()
	v := w.visits[0]
	if v.Who.String() != "user:ann@example.org" || !slices.Equal(v.Who.Groups, []string{"sre"}) || v.Target.String() != "gateway" || v.Own || w.left != 1 {
		t.Errorf("judged was %+v, %d have left", v, w.left)
	}
}

// TestExactly: what the hub sends is what the cluster gets, byte for byte.
func TestExactly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, uri := range []string{
		"/", "/api", "/api/", "/api//v1", "//api/v1", "/api/v1/nodes/a%3Ab", "/a%2Fb/c", "/a%2fb", "/a%20b", "/a+b", "/%41", "/a%25b",
		"/a;b=c/d", "/a,b@c!d$e&f'g(h)i*", "/a[b]", "/a|b^c`{d}\"<e>", "/a/./b/../c", "/api/v1/pods?", "/api/v1/pods?labelSelector=a%3Db%2Cc&limit=500&continue=x%2F+y",
		"/x?a=1;b=2", "/x?%zz", "/x?command=sh&command=-c&command=echo%20a%26b", "/caf%C3%A9", "/caf\u00e9", "//x|y",
	} {
		c := ann()
		c.URI = uri
		codes := w.raw("GET " + uri + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + assertion.Header + ": " + w.word(c) + "\r\n\r\n")
		seen := w.requests()
		if len(codes) != 1 || codes[0] != http.StatusOK || seen[len(seen)-1].RequestURI != uri {
			t.Errorf("%s: answers %v, comes as %s", uri, codes, seen[len(seen)-1].RequestURI)
		}
	}
}

// TestStripped: nothing but the hub's word says who asks.
func TestStripped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, field := range map[string]string{
		"a user":                "Impersonate-User: root",
		"in small letters":      "impersonate-user: root",
		"in mixed case":         "iMpErSoNaTe-UsEr: root",
		"with underscores":      "Impersonate_User: root",
		"a group":               "Impersonate-Group: system:masters",
		"twice":                 "Impersonate-Group: system:masters\r\nImpersonate-Group: root",
		"a UID":                 "Impersonate-Uid: 0",
		"an extra":              "Impersonate-Extra-Scopes: all",
		"an escaped extra":      "Impersonate-Extra-postern.dev%2Fprincipal: user:root",
		"a front proxy's user":  "X-Remote-User: root",
		"its group":             "X-Remote-Group: system:masters",
		"with an underscore":    "X_Remote_User: root",
		"its extra":             "X-Remote-Extra-a: root",
		"a token":               "Authorization: Bearer root",
		"two tokens":            "Authorization: Bearer root\r\nauthorization: Basic cm9vdDpyb290",
		"for a proxy":           "Proxy-Authorization: Bearer root",
		"our own":               "Postern-Whatever: root",
		"forwarded":             "Forwarded: for=root\r\nX-Forwarded-For: root\r\nX-Forwarded-User: root\r\nX-Real-Ip: root",
		"hop by hop":            "Connection: Impersonate-User, Authorization\r\nImpersonate-User: root\r\nAuthorization: Bearer root",
		"that hides ours":       "Connection: Impersonate-User, Impersonate-Group, Authorization, Host",
		"a WebSocket's":         "Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.cm9vdA",
		"a WebSocket's, alone":  "Sec-WebSocket-Protocol: BASE64URL.bearer.authorization.k8s.io.cm9vdA",
		"as a trailer":          "Trailer: Impersonate-User",
		"a keep-alive's":        "Keep-Alive: root",
		"a proxy's connection":  "Proxy-Connection: root",
		"an upgrade's settings": "HTTP2-Settings: root\r\nUpgrade: h2c\r\nConnection: HTTP2-Settings",
	} {
		before := len(w.requests())
		codes := w.raw("GET /api/v1/pods HTTP/1.1\r\nHost: x\r\n" + assertion.Header + ": " + w.word(ann()) + "\r\n" + field + "\r\n\r\n" +
			"GET /never HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		seen := w.requests()
		if len(codes) != 2 || codes[0] != 200 || codes[1] != 502 || len(seen) != before+1 {
			t.Errorf("%s: answers %v, the API server sees %d requests", name, codes, len(seen)-before)
			continue
		}
		h := seen[before].Header
		for field, values := range h {
			if strings.Contains(strings.Join(values, " "), "root") || strings.Contains(strings.Join(values, " "), "masters") || strings.HasPrefix(field, "Postern-") ||
				strings.Contains(strings.Join(values, " "), "cm9vd") {
				t.Errorf("%s: comes through as %s: %q", name, field, values)
			}
		}
		if h.Get("Impersonate-User") != "ann@example.org" || len(h["Impersonate-User"]) != 1 || len(h["Impersonate-Group"]) != 2 ||
			!slices.Equal(h["Authorization"], []string{"Bearer " + agentToken}) || seen[before].Host != w.server.api.host {
			t.Errorf("%s: the API server sees %v", name, h)
		}
	}
}

// TestNoWord: without the hub's word for this very request nothing reaches the
// cluster.
func TestNoWord(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t), newWorld(t)
	used := w.word(ann())
	if answer, _ := w.send(withWord(w.request(ann(), nil), used)); answer.StatusCode != http.StatusOK {
		t.Fatalf("the first time: %s", answer.Status)
	}
	with := func(change func(*assertion.Claims)) string {
		c := ann()
		change(&c)
		return w.word(c)
	}
	for name, words := range map[string][]string{
		"none":                 nil,
		"empty":                {""},
		"two":                  {w.word(ann()), w.word(ann())},
		"not signed":           {"eyJhbGciOiJub25lIn0.e30."},
		"another hub's":        {other.word(ann())},
		"used before":          {used},
		"for another agent":    {with(func(c *assertion.Claims) { c.Agent = "plant" })},
		"for another tenant":   {with(func(c *assertion.Claims) { c.Organization = "other" })},
		"late":                 {with(func(c *assertion.Claims) { c.IssuedAt = longAgo() })},
		"for another method":   {with(func(c *assertion.Claims) { c.Method = http.MethodDelete })},
		"for another URI":      {with(func(c *assertion.Claims) { c.URI = "/api/v1/secrets" })},
		"for the URI, escaped": {with(func(c *assertion.Claims) { c.URI = "/api/v1/%70ods" })},
	} {
		before, visits := len(w.requests()), len(w.visits)
		r := w.request(ann(), nil)
		r.Header[assertion.Header] = words
		answer, body := w.send(r)
		isStatus(t, answer, body, http.StatusBadGateway, "does not believe the hub's word")
		if len(w.requests()) != before || len(w.visits) != visits {
			t.Errorf("%s: it is acted upon", name)
		}
	}
}

func withWord(r *http.Request, word string) *http.Request {
	r.Header.Set(assertion.Header, word)
	return r
}

// TestVouched: there are identities that no hub can vouch for.
func TestVouched(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tt := range map[string]struct {
		change func(*assertion.Identity)
		code   int
		text   string
	}{
		"masters":               {func(i *assertion.Identity) { i.Groups = []string{"a", "system:masters"} }, 403, "system:masters"},
		"a part of the cluster": {func(i *assertion.Identity) { i.User = "system:kube-controller-manager" }, 403, "part of the cluster"},
		"a space at the end":    {func(i *assertion.Identity) { i.User = "root " }, 400, "cannot be the name"},
		"a tab before":          {func(i *assertion.Identity) { i.Groups = []string{"\troot"} }, 400, "cannot be the name"},
		"a line":                {func(i *assertion.Identity) { i.User = "a\r\nImpersonate-User: root" }, 400, "cannot be the name"},
		"a line in an extra":    {func(i *assertion.Identity) { i.Extra = map[string][]string{"a": {"b\nc"}} }, 400, "cannot be the name"},
		"an empty group":        {func(i *assertion.Identity) { i.Groups = []string{""} }, 400, "cannot be the name"},
		"an extra in capitals":  {func(i *assertion.Identity) { i.Extra = map[string][]string{"A": {"b"}} }, 400, "small letters"},
	} {
		c := ann()
		tt.change(&c.Impersonate)
		answer, body := w.send(w.request(c, nil))
		isStatus(t, answer, body, tt.code, tt.text)
		if len(w.requests()) > 0 {
			t.Fatalf("%s: it is acted upon", name)
		}
	}
	c := ann()
	c.Impersonate = assertion.Identity{User: "system:serviceaccount:a:b", UID: "7", Extra: map[string][]string{"a%b/\u00e9": {"gr\u00fcn"}}}
	if answer, _ := w.send(w.request(c, nil)); answer.StatusCode != http.StatusOK {
		t.Errorf("a service account: %s", answer.Status)
	}
	h := w.requests()[0].Header
	if h.Get("Impersonate-User") != c.Impersonate.User || h.Get("Impersonate-Uid") != "7" || !slices.Equal(h["Impersonate-Extra-A%25b%2f%c3%a9"], []string{"gr\u00fcn"}) {
		t.Errorf("the API server sees %v", h)
	}
}

// TestPass: a token that the cluster itself accepts, and what its bearer wishes to be,
// are the API server's to judge.
func TestPass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := ann()
	c.Mode, c.Impersonate = assertion.ModePass, assertion.Identity{}
	r := w.request(c, nil)
	r.Header["Authorization"] = []string{"Bearer mine"}
	r.Header.Set("Impersonate-User", "bob")
	r.Header.Set("X-Remote-User", "root")
	r.Header["Impersonate_user"] = []string{"root"}
	if answer, _ := w.send(r); answer.StatusCode != http.StatusOK {
		t.Fatal(answer.Status)
	}
	h := w.requests()[0].Header
	if h.Get("Authorization") != "Bearer mine" || h.Get("Impersonate-User") != "bob" || h["X-Remote-User"] != nil || h["Impersonate_user"] != nil {
		t.Errorf("the API server sees %v", h)
	}
	answer, body := w.send(w.request(c, nil))
	isStatus(t, answer, body, http.StatusUnauthorized, "no credentials")
	c.Service = &assertion.Service{Scheme: "https", Namespace: "a", Name: "b", Port: "443"}
	r = w.request(c, nil)
	r.Header.Set("Authorization", "Bearer mine")
	answer, body = w.send(r)
	isStatus(t, answer, body, http.StatusBadRequest, "services")
	w.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	c.Service = nil
	r = w.request(c, nil)
	r.Header.Set("Authorization", "Bearer bad")
	if answer, _ := w.send(r); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("what the cluster says of a token comes as %s", answer.Status)
	}
}

// TestSelf: the hub may ask about tokens, and read services, and nothing else, as the
// agent.
func TestSelf(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	self := func(method, uri string) assertion.Claims {
		return assertion.Claims{Organization: "acme", Agent: "office", Method: method, URI: uri, Mode: assertion.ModeSelf, Principal: "hub:main"}
	}
	r := w.request(self(http.MethodPost, reviewPath), strings.NewReader(`{}`))
	r.Header.Set("Impersonate-User", "root")
	if answer, _ := w.send(r); answer.StatusCode != http.StatusOK {
		t.Fatal(answer.Status)
	}
	h := w.requests()[0].Header
	if h.Get("Authorization") != "Bearer "+agentToken || h["Impersonate-User"] != nil || !w.visits[0].Own {
		t.Errorf("the API server sees %v; judged was %+v", h, w.visits[0])
	}
	const service = "/api/v1/namespaces/shop/services/web"
	withService := self(http.MethodPost, reviewPath)
	withService.Service = &assertion.Service{Scheme: "http", Namespace: "a", Name: "b", Port: "80"}
	for _, c := range []assertion.Claims{
		self(http.MethodGet, reviewPath), self(http.MethodPost, reviewPath+"?a=b"), self(http.MethodPost, reviewPath+"/"), self(http.MethodPost, "/"+reviewPath),
		self(http.MethodPost, "/api/v1/namespaces/kube-system/serviceaccounts/a/token"), self(http.MethodGet, "/api/v1/secrets"), withService,
		self(http.MethodDelete, service), self(http.MethodPost, service), self(http.MethodGet, service+"/proxy"), self(http.MethodGet, service+"?watch=1"),
		self(http.MethodGet, service+"/"), self(http.MethodGet, "/"+service), self(http.MethodGet, "/api/v1/namespaces/shop/services"),
		self(http.MethodGet, "/api/v1/namespaces/shop/services/"), self(http.MethodGet, "/api/v1/namespaces/shop/secrets/web"),
		self(http.MethodGet, "/api/v1/namespaces/shop/services/.."), self(http.MethodGet, "/api/v1/namespaces/../services/web"), self(http.MethodGet, "/api/v1/services/web"),
		self(http.MethodGet, "/api/v1/namespaces/shop%2fsecrets/services/web"),
	} {
		answer, body := w.send(w.request(c, nil))
		isStatus(t, answer, body, http.StatusForbidden, "token reviews and read services only")
	}
	if answer, _ := w.send(w.request(self(http.MethodGet, service), nil)); answer.StatusCode != http.StatusOK {
		t.Error(answer.Status)
	}
	if n := len(w.requests()); n != 2 {
		t.Errorf("the API server sees %d requests", n)
	}
}

// TestSmuggling: of bytes that two servers could read in two ways, the cluster sees
// one request with the hub's word, or none.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.answer = func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }
	c := ann()
	c.Method, c.URI = http.MethodPost, "/api/v1/pods"
	const hidden = "GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, rest := range map[string]string{
		"CL.TE":              "Content-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"TE.CL":              "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + strings.Repeat("x", 0x5c) + "\r\n0\r\n\r\n" + hidden,
		"TE.TE":              "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"two lengths":        "Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + hidden,
		"a length with sign": "Content-Length: +0\r\n\r\n" + hidden,
		"a space":            "Content-Length : 44\r\n\r\n" + hidden,
		"a folded line":      "X: a\r\n b: c\r\nContent-Length: 0\r\n\r\n" + hidden,
		"a bare CR":          "X: a\rImpersonate-User: root\r\nContent-Length: 0\r\n\r\n" + hidden,
		"a zero byte":        "X: a\x00b\r\nContent-Length: 0\r\n\r\n" + hidden,
		"xchunked":           "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
		"a tab":              "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" + hidden,
	} {
		before := len(w.requests())
		w.raw("POST /api/v1/pods HTTP/1.1\r\nHost: x\r\n" + assertion.Header + ": " + w.word(c) + "\r\n" + rest + "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		seen := w.requests()[before:]
		if len(seen) > 1 {
			t.Errorf("%s: the API server sees %d requests", name, len(seen))
		}
		for _, r := range seen {
			if r.RequestURI != "/api/v1/pods" || r.Header.Get("Impersonate-User") != "ann@example.org" {
				t.Errorf("%s: the API server sees %s of %v", name, r.RequestURI, r.Header)
			}
		}
	}
	for _, line := range []string{"CONNECT api:443 HTTP/1.1", "OPTIONS * HTTP/1.1", "GET http://other/api/v1/pods HTTP/1.1", "PRI * HTTP/2.0"} {
		method, uri, _ := strings.Cut(strings.TrimSuffix(line, " HTTP/1.1"), " ")
		c := ann()
		c.Method, c.URI = method, uri
		codes := w.raw(line + "\r\nHost: x\r\nConnection: close\r\n" + assertion.Header + ": " + w.word(c) + "\r\n\r\n")
		if slices.Contains(codes, http.StatusOK) {
			t.Errorf("%s: %v", line, codes)
		}
	}
}

package kubeauth

import (
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func encoded(token string) string { return base64.RawURLEncoding.EncodeToString([]byte(token)) }

// webSocket returns the fields of a WebSocket that offers some subprotocols.
func webSocket(protocols ...string) http.Header {
	return http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"WebSocket"}, fieldProtocol: protocols}
}

func TestToken(t *testing.T) {
	t.Parallel()
	with := func(h http.Header, field string, values ...string) http.Header {
		h = maps.Clone(h)
		h[field] = values
		return h
	}
	bearer := BearerProtocol + encoded("secret")
	for name, one := range map[string]struct {
		header http.Header
		want   string
	}{
		"nothing":                 {http.Header{}, ""},
		"bearer":                  {http.Header{"Authorization": {"bearer  secret "}}, "secret"},
		"basic":                   {http.Header{"Authorization": {"Basic c2VjcmV0"}}, ""},
		"two":                     {http.Header{"Authorization": {"Bearer a", "Bearer b"}}, ""},
		"none":                    {http.Header{"Authorization": {}}, ""},
		"websocket":               {webSocket("v5.channel.k8s.io, "+bearer, "v4.channel.k8s.io"), "secret"},
		"websocket, no upgrade":   {http.Header{fieldProtocol: {bearer}}, ""},
		"websocket, other":        {with(webSocket(bearer), "Upgrade", "SPDY/3.1"), ""},
		"websocket, empty":        {with(webSocket(bearer), "Authorization", ""), ""},
		"websocket, two tokens":   {webSocket(bearer + ", " + BearerProtocol + encoded("other")), ""},
		"websocket, the same":     {webSocket(bearer, bearer), ""},
		"websocket, capitals":     {webSocket(strings.ToUpper(BearerProtocol) + encoded("secret")), ""},
		"websocket, and capitals": {webSocket(bearer, strings.ToUpper(BearerProtocol)+encoded("other")), ""},
		"websocket, padded":       {webSocket(BearerProtocol + base64.URLEncoding.EncodeToString([]byte("secret1"))), ""},
		"websocket, not UTF-8":    {webSocket(BearerProtocol + encoded("\xff\xfe")), ""},
		"websocket, and basic":    {with(webSocket(bearer), "Authorization", "Basic x"), ""},
	} {
		if got := Token(one.header); got != one.want {
			t.Errorf("%s: got %q, want %q", name, got, one.want)
		}
	}
}

func TestStrip(t *testing.T) {
	t.Parallel()
	bearer := strings.ToUpper(BearerProtocol[:9]) + BearerProtocol[9:] + encoded("secret")
	request := func() http.Header {
		h := webSocket("v5.channel.k8s.io, "+bearer, bearer)
		for _, field := range []string{
			"Authorization", "authorization", "Cookie", "Forwarded", "Impersonate-User", "impersonate_user", "Impersonate_Group", "Impersonate-Extra-A",
			"X-Remote-User", "X_Remote_Group", "X-Forwarded-User", "X-Real-Ip", "X-Real-IP-2", "Postern-Assertion", "postern_assertion", "Proxy-Authorization",
		} {
			h[field] = []string{"x"}
		}
		h["Accept"] = []string{"application/json"}
		return h
	}
	fields := func(h http.Header) []string { return slices.Sorted(maps.Keys(h)) }

	h := request()
	Strip(h, false)
	if diff := cmp.Diff([]string{"Accept", "Connection", fieldProtocol, "Upgrade"}, fields(h)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"v5.channel.k8s.io"}, h[fieldProtocol]); diff != "" {
		t.Error(diff)
	}
	h = request()
	Strip(h, true)
	want := []string{"Accept", "Authorization", "Connection", "Impersonate-Extra-A", "Impersonate-User", fieldProtocol, "Upgrade", "authorization"}
	if diff := cmp.Diff(want, fields(h)); diff != "" {
		t.Error(diff)
	}
	h = webSocket(bearer)
	if !Shows(h) || Shows(webSocket("v5.channel.k8s.io")) {
		t.Error("what a WebSocket shows is not seen")
	}
	Strip(h, false)
	if _, left := h[fieldProtocol]; left || Shows(h) {
		t.Errorf("left: %v", h)
	}
}

// FuzzStrip: whatever fields a request has, nothing that is left speaks for somebody,
// and a token is only what API servers would take for one, too.
func FuzzStrip(f *testing.F) {
	f.Add("Impersonate-User", "a", "Impersonate-Extra-%2f", "b", true)
	f.Add("Sec-Websocket-Protocol", BearerProtocol+"YQ, x", "Connection", "upgrade", false)
	f.Add("Sec-WebSocket-Protocol", strings.ToUpper(BearerProtocol)+"YQ,"+BearerProtocol+"Yg", "Upgrade", "websocket", false)
	f.Add("X_Remote_User", "a", "authorization", "Bearer x", true)
	f.Add("Cookie", "", "Proxy_Authorization", "\xff", false)
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string, own bool) {
		h := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
		h.Add(k1, v1)
		h.Add(k2, v2)
		if token := Token(h); token != "" && !Shows(h) {
			t.Fatalf("%q is a token, and nothing is shown", token)
		}
		Strip(h, own)
		if !own && (Shows(h) || Token(h) != "") {
			t.Fatalf("%v shows something", h)
		}
		for field, values := range h {
			name := strings.NewReplacer("_", "-").Replace(strings.ToLower(field))
			for _, bad := range []string{"x-remote-", "postern-", "proxy-", "x-forwarded-", "cookie"} {
				if strings.HasPrefix(name, bad) && (bad != "cookie" || name == bad) {
					t.Fatalf("%q is left", field)
				}
			}
			if !own && (strings.HasPrefix(name, "impersonate-") || name == "authorization") {
				t.Fatalf("%q is left", field)
			}
			text := strings.ToLower(strings.Join(values, ","))
			if field == fieldProtocol && !own && strings.Contains(text, ","+BearerProtocol) {
				t.Fatalf("%q is left", text)
			}
		}
	})
}

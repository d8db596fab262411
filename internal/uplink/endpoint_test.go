package uplink

import (
	"strings"
	"testing"
)

func TestParseConnectURL(t *testing.T) {
	for in, want := range map[string]string{
		"tls://hub.example.com":        "tls://hub.example.com:4222",
		"tls://hub.example.com:443":    "tls://hub.example.com:443",
		"TLS://Hub.Example.COM.":       "tls://hub.example.com:4222",
		"https://hub.example.com":      "https://hub.example.com:443",
		"https://hub.example.com:8443": "https://hub.example.com:8443",
		"https://hub.example.com/":     "https://hub.example.com:443",
		"tls://127.0.0.1":              "tls://127.0.0.1:4222",
		"tls://[::1]":                  "tls://[::1]:4222",
		"tls://[2001:DB8::1]:5000":     "tls://[2001:db8::1]:5000",
		"tls://localhost":              "tls://localhost:4222",
		"wss://hub.example.com":        "wss://hub.example.com:443",
		"wss://hub.example.com:8443/":  "wss://hub.example.com:8443",
		"WSS://h/v1/connect":           "wss://h:443",
		"wss://[::1]/a%2Fb/c":          "wss://[::1]:443/a%2Fb/c",
	} {
		e, err := ParseConnectURL(in)
		if err != nil || e.String() != want {
			t.Errorf("ParseConnectURL(%q) = %v, %v; want %s", in, e, err, want)
		}
	}
	e, _ := ParseConnectURL("tls://[::1]")
	if e.BaseURL() != "https://[::1]:4222" {
		t.Errorf("BaseURL = %s", e.BaseURL())
	}
}

func TestParseConnectURLErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "missing",
		"hub.example.com":                    "no scheme",
		"hub.example.com:4222":               "for example tls://hub.example.com:4222",
		"http://hub.example.com":             `scheme "http"`,
		"nats://hub":                         `scheme "nats"`,
		"tls://":                             "1 to 253",
		"tls://hub:0":                        "port",
		"tls://hub:65536":                    "port",
		"tls://hub:":                         "port",
		"tls://hub:x":                        "does not parse",
		"tls://user:secret@hub":              "user or password",
		"tls://hub/path":                     "more than a host",
		"tls://hub?x":                        "more than a host",
		"wss://hub/v1?x":                     "more than a host",
		"wss://hub/v1#x":                     "more than a host",
		"wss://user:secret@hub/":             "user or password",
		"ws://hub":                           `scheme "ws"`,
		"tls://hub#":                         "more than a host",
		"tls://::1":                          "not allowed in a name",
		"tls://[fe80::1%25eth0]":             "zones",
		"tls://127.1":                        "neither a name nor an IP",
		"tls://a b":                          "does not parse",
		"tls://" + strings.Repeat("a", 3000): "at most",
	} {
		_, err := ParseConnectURL(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseConnectURL(%q): %v; want %q in it", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseConnectURL(%q) shows a password: %v", in, err)
		}
	}
}

func FuzzParseConnectURL(f *testing.F) {
	for _, s := range []string{"tls://hub", "https://[::1]:1", "tls://a:b@c", "x", "tls://%41", "https://h/?#", "wss://h/a%2f//b", "wss://[::1]:9/ ", "wss://h/v1/connect"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseConnectURL(s)
		if err != nil {
			return
		}
		again, err := ParseConnectURL(e.String())
		if err != nil || again != e {
			t.Fatalf("%q gives %v, which reads back as %v, %v", s, e, again, err)
		}
	})
}

package config

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func TestHubErrors(t *testing.T) {
	for _, tt := range []struct{ flag, want string }{
		{"", ""},
		{"--listen=:4222", ""},
		{"--listen=[::1]:0", ""},
		{"--listen=4222", "is not an address to listen on"},
		{"--listen=host:x", "has no port between 0 and 65535"},
		{"--tls-name=hub_1.example.org", ""},
		{"--tls-name=two words", "is not allowed in a name"},
		{"--tls-cert-file=c.pem", "belong together"},
		{"--credential-ttl=9s", "out of bounds: want between 10s and 24h0m0s"},
		{"--audit-open-after=0s", ""},
		{"--audit-open-after=61s", "out of bounds: want between 0s and 1m0s"},
		{"--http=127.0.0.1:3128", ""},
		{"--http=[::1]:3128", ""},
		{"--http=localhost:3128", ""},
		{"--http=:3128", ""}, // robots' tokens are passwords here
		{"--forward=127.0.0.1:1=a/tcp:db:5432", ""},
		{"--forward=127.0.0.1:1=o/a/kubernetes", ""},
		{"--forward=127.0.0.1:1=a/tcp:db:5432,127.0.0.1:1=a/tcp:db:1", "is used by two forwards"},
		{"--forward=127.0.0.1:0=a/tcp:db:5432,127.0.0.1:0=a/tcp:db:1", ""},
		{"--forward=5432", "want ADDR=AGENT/tcp:HOST:PORT"},
		{"--trust-domain=a b", "is not allowed in a name"},
	} {
		t.Run(tt.flag, func(t *testing.T) {
			hub := DefaultHub()
			set := Bind(&hub)
			hub.Data = "d"
			if name, value, ok := strings.Cut(strings.TrimPrefix(tt.flag, "--"), "="); ok {
				if err := set.Field(name).Set(value); err != nil {
					t.Fatal(err)
				}
			}
			err := set.Load(environment(nil, nil))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error = %v\nwant    %q", err, tt.want)
			}
		})
	}
}

func TestProxyListenersBehindCredentials(t *testing.T) {
	for flag, ok := range map[string]bool{"": false, "--require-token=true": true, "--credentials-file=f": true} {
		p := DefaultProxy()
		set := Bind(&p)
		for _, f := range []string{"--connect-url=tls://h", "--organization=o", "--token-file=t", "--http=0.0.0.0:3128", flag} {
			if name, value, found := strings.Cut(strings.TrimPrefix(f, "--"), "="); found {
				if err := set.Field(name).Set(value); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := set.Load(environment(nil, nil)); (err == nil) != ok {
			t.Errorf("with %q: error %v", flag, err)
		}
	}
}

func TestProxyNeedsAListener(t *testing.T) {
	p := DefaultProxy()
	p.ConnectURL, p.Organization, p.TokenFile = "tls://h", "o", "t"
	err := Bind(&p).Load(environment(nil, nil))
	if err == nil || !strings.Contains(err.Error(), "give at least one of --http, --socks5 and --forward") {
		t.Errorf("error = %v", err)
	}
}

func TestClient(t *testing.T) {
	client := DefaultClient()
	err := Bind(&client).Load(environment(map[string]string{
		"POSTERN_HUB": "https://[::1]:4222/", "POSTERN_TOKEN_FILE": "admin.token", "POSTERN_CA_FILE": "ca.crt",
		"POSTERN_TOKEN": "unused", "POSTERN_CONFIG": "nowhere.yaml",
	}, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := Client{Hub: "https://[::1]:4222", TokenFile: "admin.token", CAFile: "ca.crt", Organization: "default"}
	if diff := cmp.Diff(want, client); diff != "" {
		t.Errorf("client (-want +got):\n%s", diff)
	}
	client = DefaultClient()
	err = Bind(&client).Load(environment(map[string]string{"POSTERN_HUB": "hub:4222", "POSTERN_TOKEN": "x"}, nil))
	if err == nil || !strings.Contains(err.Error(), `hub (POSTERN_HUB): "hub:4222" is not the address of a hub`) {
		t.Errorf("error = %v", err)
	}
}

func TestParseForward(t *testing.T) {
	db, err := wire.TCP("db.example.org", 5432)
	if err != nil {
		t.Fatal(err)
	}
	v6, err := wire.TCP("2001:db8::1", 1)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Forward{
		"127.0.0.1:5432=office/tcp:db.example.org:5432": {"127.0.0.1:5432", "", "office", db},
		"[::1]:0=acme/office/tcp:[2001:db8::1]:1":       {"[::1]:0", "acme", "office", v6},
		":6443=office/kubernetes":                       {":6443", "", "office", wire.Kubernetes()},
	} {
		got, err := ParseForward(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
		if got.String() != text {
			t.Errorf("%s prints as %s", text, got)
		}
	}
	for _, bad := range []string{"", "x", "127.0.0.1:1", "127.0.0.1:1=a", "127.0.0.1:1=/tcp:a:1", "127.0.0.1:1=a/tcp:b", "1=a/tcp:b:1",
		"127.0.0.1:1=A/tcp:b:1", "127.0.0.1:1=x/y/z/tcp:b:1", "127.0.0.1:99999=a/tcp:b:1", "127.0.0.1:1=O/a/tcp:b:1", "127.0.0.1:1=a/gateway"} {
		if f, err := ParseForward(bad); err == nil {
			t.Errorf("%q is read as %v", bad, f)
		}
	}
}

func TestReplicaName(t *testing.T) {
	for _, tt := range []struct {
		pod, host string
		want      string
	}{
		{"agent-5d4f-x2x", "ignored", `^agent-5d4f-x2x$`},
		{"", "web1.example.org", `^web1-[a-z2-7]{5}$`},
		{"", "MacBook Pro_(2)", `^macbook-pro--2-[a-z2-7]{5}$`},
		{"", strings.Repeat("a", 80), `^a{57}-[a-z2-7]{5}$`},
		{"", "...", `^replica-[a-z2-7]{5}$`},
		{strings.Repeat("p", 70), "", `^p{63}$`},
	} {
		env := environment(map[string]string{"POD_NAME": tt.pod}, nil)
		env.Hostname = func() (string, error) { return tt.host, nil }
		name := ReplicaName(env)
		if !regexp.MustCompile(tt.want).MatchString(name) {
			t.Errorf("pod %q, host %q: %q, want %s", tt.pod, tt.host, name, tt.want)
		}
		if err := identity.ValidateName("replica", name); err != nil {
			t.Error(err)
		}
	}
	env := environment(nil, nil)
	env.Hostname = func() (string, error) { return "", errors.New("no name") }
	if a, b := ReplicaName(env), ReplicaName(env); a == b {
		t.Errorf("two replicas are both called %s", a)
	}
}

func TestOperatorErrors(t *testing.T) {
	for _, tt := range []struct{ flag, want string }{
		{"", ""},
		{"--connect-url=tls://hub.example.org", ""},
		{"--connect-url=hub.example.org", "connect-url"},
		{"--connect-url=wss://hub.example.org", "is needed with wss://"},
		{"--ca-pin=abc", "is not a pin"},
		{"--organization=A", "organization"},
		{"--proxy-replicas=0", "0 is out of bounds: want between 1 and 20"},
		{"--proxy-image-pull-policy=always", "is not one of Always, IfNotPresent, Never"},
		{"--proxy-limits=memory", "is not of the form KEY=VALUE"},
		{"--proxy-node-selector==x", "is not of the form KEY=VALUE"},
		{"--proxy-toleration=dedicated=proxies:NoSchedule", ""},
		{"--proxy-toleration=a:Never", "is no toleration"},
		{"--proxy-http-proxy=http://proxy.example.org:3128", ""},
		{"--proxy-http-proxy=proxy.example.org", "is not the address of an HTTP proxy"},
		{"--proxy-http-proxy=http://u:secret@proxy.example.org", "which would stand in every pod"},
		{"--proxy-http-proxy-secret=way/url", ""},
		{"--proxy-http-proxy-secret=way", "names no key of a Secret"},
		{"--proxy-http-proxy-port=0", ""},
		{"--watch-namespace=a,B", "namespace"},
		{"--metrics=8080", "is not an address to listen on"},
		{"--log-level=loud", "is not one of"},
	} {
		o := DefaultOperator()
		set := Bind(&o)
		o.Namespace, o.Pods.Image = "postern-system", "postern:test"
		if name, value, ok := strings.Cut(strings.TrimPrefix(tt.flag, "--"), "="); ok {
			if err := set.Field(name).Set(value); err != nil {
				t.Fatal(err)
			}
		}
		err := set.Load(environment(nil, nil))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error = %v\nwant    %q", tt.flag, err, tt.want)
		}
	}
	o := DefaultOperator()
	if err := Bind(&o).Field("proxy-replicas").Set("two"); err == nil {
		t.Error("two replicas, in letters")
	}
	if err := Bind(&o).Load(environment(nil, nil)); err == nil || !strings.Contains(err.Error(), "proxy-image") || !strings.Contains(err.Error(), "namespace") {
		t.Errorf("nothing set: %v", err)
	}
}

// TestNames checks what is derived from a setting's name, for every setting of every role.
func TestNames(t *testing.T) {
	hub, agent, proxy, client, operator := DefaultHub(), DefaultAgent(), DefaultProxy(), DefaultClient(), DefaultOperator()
	for _, s := range []Settings{&hub, &agent, &proxy, &client, &operator} {
		seen := make(map[string]string)
		for _, f := range Bind(s).Fields() {
			if !regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*$`).MatchString(f.Name) {
				t.Errorf("%T: name %q", s, f.Name)
			}
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%T: usage of %s: %q", s, f.Name, f.Usage)
			}
			for _, name := range append([]string{f.Env()}, f.Aliases...) {
				if other, twice := seen[name]; twice {
					t.Errorf("%T: %s sets both %s and %s", s, name, f.Name, other)
				}
				seen[name] = f.Name
			}
		}
	}
	f := Bind(&agent).Field("connect-url")
	if f.Env() != "POSTERN_CONNECT_URL" || f.Key() != "connectUrl" {
		t.Errorf("connect-url is %s and %s", f.Env(), f.Key())
	}
}

package config

import (
	"strings"
	"testing"
)

func TestValidateIssuerURL(t *testing.T) {
	for s, ok := range map[string]bool{
		"https://id.example.org": true, "https://id.example.org:8443": true, "https://id.example.org/a/b": true, "https://[::1]:8443": true,
		"": false, "id.example.org": false, "http://id.example.org": false, "https://id.example.org/": false, "https://id.example.org/a/": false,
		"https://ID.example.org": false, "https://u@id.example.org": false, "https://id.example.org?x": false, "https://id.example.org#x": false,
		"https://id.example.org?": false, "https://id.example.org/a//b": false, "https://id.example.org/../a": false, "https://id.example.org/.a": false,
		"https://id.example.org/a%2fb": false, "https://": false, "https:///a": false, "https://:443": false, "https://" + strings.Repeat("a", 260): false,
		"https://id.example.org#": false, "https://id.example.org/a b": false,
	} {
		if err := ValidateIssuerURL(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestIdentityIssuerErrors(t *testing.T) {
	for _, tt := range []struct{ flags, want string }{
		{"issuer-url=https://id.example.org", ""},
		{"issuer-url=https://hub.example.org/issuer issuer-key-type=ecdsa-p256 issuer-key-age=0s issuer-key-ahead=15m", ""},
		{"issuer-url=https://id.example.org/", "without a slash at its end"},
		{"issuer-url=http://id.example.org", "has to begin with https://"},
		{"issuer-url=https://id.example.org issuer-key-type=rsa", "is not one of rsa-2048"},
		{"issuer-url=https://id.example.org issuer-key-ahead=1m", "out of bounds"},
		{"issuer-url=https://id.example.org issuer-key-age=24h", "too short"},
		{"issuer-keys-dir=d", "is of no use alone"},
		{"issuer-keys-secret=keys", "is of no use alone"},
		{"issuer-url=https://id.example.org issuer-keys-secret=postern-system/keys", ""},
		{"issuer-url=https://id.example.org issuer-keys-secret=a/b/c", "[NAMESPACE/]NAME"},
		{"issuer-url=https://id.example.org issuer-keys-secret=Keys", "[NAMESPACE/]NAME"},
		{"issuer-url=https://id.example.org issuer-keys-secret=keys issuer-keys-dir=d", "keys are in one place"},
	} {
		hub := DefaultHub()
		set := Bind(&hub)
		hub.Data = "d"
		for flag := range strings.FieldsSeq(tt.flags) {
			name, value, _ := strings.Cut(flag, "=")
			if err := set.Field(name).Set(value); err != nil {
				t.Fatal(err)
			}
		}
		err := set.Load(environment(nil, nil))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v; want %q", tt.flags, err, tt.want)
		}
	}
}

func TestOperatorIdentityErrors(t *testing.T) {
	for _, tt := range []struct{ flags, want string }{
		{"", ""},
		{"identity-control-plane=prod-1 identity-token-file=f connect-url=tls://hub", ""},
		{"identity-control-plane=prod-1 identity-token-file=f identity-url=https://id.example.org identity-scope=eu/main", ""},
		{"identity-control-plane=prod-1 connect-url=tls://hub", "identity-token-file"},
		{"identity-control-plane=prod-1 identity-token-file=f", "neither is the hub"},
		{"identity-control-plane=a:b identity-token-file=f connect-url=tls://hub", "want a-z"},
		{"identity-control-plane=s/g/a identity-token-file=f connect-url=tls://hub", "is not the name alone"},
		{"identity-control-plane=a identity-scope=s identity-token-file=f connect-url=tls://hub", "want NAME, or SPACE/GROUP/NAME"},
		{"identity-token-file=f", "name the control plane that this cluster is"},
	} {
		o := DefaultOperator()
		set := Bind(&o)
		o.Namespace, o.Pods.Image, o.CAPin = "postern-system", "postern", "sha256:"+strings.Repeat("ab", 32)
		for flag := range strings.FieldsSeq(tt.flags) {
			name, value, _ := strings.Cut(flag, "=")
			if err := set.Field(name).Set(value); err != nil {
				t.Fatal(err)
			}
		}
		err := set.Load(environment(nil, nil))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v; want %q", tt.flags, err, tt.want)
		}
		if err == nil && o.Identity.On() && o.Identity.Ref().Name != "prod-1" {
			t.Errorf("%s: %v", tt.flags, o.Identity.Ref())
		}
	}
}

package oidc

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheckPublic(t *testing.T) {
	for address, ok := range map[string]bool{
		"93.184.216.34:443": true, "[2606:2800:220:1::1]:443": true,
		"127.0.0.1:443": false, "10.0.0.1:443": false, "192.168.1.1:443": false, "169.254.169.254:80": false, "100.100.100.200:80": false,
		"0.0.0.0:443": false, "[::1]:443": false, "[fe80::1%eth0]:443": false, "[fd00:ec2::254]:80": false, "[::ffff:127.0.0.1]:443": false,
		"[64:ff9b::7f00:1]:443": false, "[2002:7f00:1::]:443": false, "224.0.0.1:1": false, "255.255.255.255:1": false, "x": false,
	} {
		if err := checkPublic(address); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// FuzzParse feeds payloads and key sets of strangers.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"iss":"https://a","sub":"s","exp":1,"aud":["a",2],"groups":{"a":[null]}}`))
	f.Add([]byte(`{"iss":1,"exp":"x"}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"oct","k":"AA"},null,3]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseClaims(b); err == nil {
			if c.Issuer == "" || c.Subject == "" || c.Expires.IsZero() {
				t.Errorf("%q: claims without what they need", b)
			}
			_, _ = c.Strings("groups"), c.Match("a", "groups", "a")
		}
		if keys, err := parseKeys(b); err == nil {
			for _, k := range keys {
				if !k.IsPublic() || !k.Valid() {
					t.Errorf("%q: a key that is not public or not valid", b)
				}
			}
		}
	})
}

// FuzzUnverifiedIssuer reads the issuer of tokens of strangers.
func FuzzUnverifiedIssuer(f *testing.F) {
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL2EifQ.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2EifQ.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if issuer := UnverifiedIssuer(token); len(issuer) > len(token) {
			t.Errorf("%q has the issuer %q", token, issuer)
		}
	})
}

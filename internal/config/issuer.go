package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// IdentityIssuer is an issuer of identity tokens for providers in control planes: its
// name, and its signing keys.
type IdentityIssuer struct {
	IssuerURL  string        // its name: "iss" of tokens. Empty: there is no issuer
	KeysDir    string        // folder with signing keys that somebody else keeps; empty: its own
	KeysSecret string        // [NAMESPACE/]NAME of a Secret in which it keeps its own, in a pod; empty: a directory
	KeyType    string        // of the keys that it makes
	KeyAge     time.Duration // how long a key signs; 0: until somebody says otherwise
	KeyAhead   time.Duration // how long a key is published before it signs
}

func defaultIdentityIssuer() IdentityIssuer {
	return IdentityIssuer{KeyType: "rsa-2048", KeyAge: 30 * day, KeyAhead: day}
}

func (i *IdentityIssuer) fields() []*Field {
	return []*Field{
		text("issuer-url", "URL", &i.IssuerURL, "name of the issuer of identity tokens for providers, and where relying parties find its keys: https://HOST[/PATH]"),
		text("issuer-keys-dir", "DIR", &i.KeysDir, "folder with the issuer's keys that somebody else keeps, such as a mounted Secret: signing.pem signs, every other *.pem is published; "+
			"without it the issuer makes and rotates its own"),
		text("issuer-keys-secret", "[NAMESPACE/]NAME", &i.KeysSecret, "Secret in which the issuer makes and rotates its keys, in the Kubernetes cluster that it runs in, instead of a directory"),
		text("issuer-key-type", "TYPE", &i.KeyType, "kind of the signing keys that are made: rsa-2048, rsa-3072 or ecdsa-p256, which some clouds do not know"),
		period("issuer-key-age", &i.KeyAge, "how long a key signs; 0 for until postern issuer rotate"),
		period("issuer-key-ahead", &i.KeyAhead, "how long a key is published before it signs: as long as relying parties may go without asking for keys"),
	}
}

func (i *IdentityIssuer) check(c *checker) {
	if i.IssuerURL == "" {
		if i.KeysDir != "" {
			c.fail("issuer-keys-dir", "give --issuer-url too", "is of no use alone")
		}
		if i.KeysSecret != "" {
			c.fail("issuer-keys-secret", "give --issuer-url too", "is of no use alone")
		}
		return
	}
	if i.KeysSecret != "" {
		if err := checkSecretName(i.KeysSecret); err != nil {
			c.fail("issuer-keys-secret", "", "%v", err)
		}
		if i.KeysDir != "" {
			c.fail("issuer-keys-secret", "leave one of them out", "keys are in one place, and --issuer-keys-dir names another")
		}
	}
	if err := ValidateIssuerURL(i.IssuerURL); err != nil {
		c.fail("issuer-url", "write it as relying parties will: https://HOST, or https://HOST/PATH", "%v", err)
	}
	types := []string{"rsa-2048", "rsa-3072", "ecdsa-p256"}
	if !slices.Contains(types, i.KeyType) {
		c.fail("issuer-key-type", "", "%q is not one of %s", i.KeyType, strings.Join(types, ", "))
	}
	if i.KeyAhead < 15*time.Minute || i.KeyAhead > 30*day {
		c.fail("issuer-key-ahead", "", "%v is out of bounds: want between 15m and 720h", i.KeyAhead)
	}
	if i.KeyAge != 0 && i.KeyAge < i.KeyAhead+2*time.Hour {
		c.fail("issuer-key-age", "", "%v is too short: want --issuer-key-ahead and two hours at least, or 0", i.KeyAge)
	}
}

// ValidateIssuerURL says whether an issuer of identity tokens may have the name s:
// https://HOST[:PORT][/PATH], as relying parties compare it, so without a slash at its end.
func ValidateIssuerURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "" || len(s) > 255:
		return fmt.Errorf("issuer %.200q is not a URL: want https://HOST[/PATH]", s)
	case u.User != nil || strings.ContainsAny(s, "#?"):
		return errors.New("issuer URL may have no user, query or fragment")
	case u.Scheme != "https":
		return fmt.Errorf("issuer %q has to begin with https://", s)
	case u.Host != strings.ToLower(u.Host):
		return fmt.Errorf("issuer %q: write its host in small letters; relying parties compare letter by letter", s)
	case strings.HasSuffix(s, "/") || u.RawPath != "" || u.Path != "" && !plainPath(u.Path):
		return fmt.Errorf("issuer %q: want a plain path, such as /issuer, without a slash at its end", s)
	}
	return nil
}

// checkSecretName says whether s is [NAMESPACE/]NAME.
func checkSecretName(s string) error {
	const small = "abcdefghijklmnopqrstuvwxyz0123456789-."
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || len(part) > 253 || strings.Trim(part, small) != "" || strings.Trim(part, "-.") != part {
			return fmt.Errorf("%.300q is not [NAMESPACE/]NAME of a Secret", s)
		}
	}
	if strings.Count(s, "/") > 1 {
		return fmt.Errorf("%.300q is not [NAMESPACE/]NAME of a Secret", s)
	}
	return nil
}

// plainPath reports whether a path means the same to everybody.
func plainPath(p string) bool {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
	for segment := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		if segment == "" || segment[0] == '.' || strings.Trim(segment, plain) != "" {
			return false
		}
	}
	return true
}

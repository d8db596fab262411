package config

import (
	"encoding/hex"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

// maxDrain bounds the drain time-out: nobody waits longer for a process to stop.
const maxDrain = time.Hour

func (c *checker) oneOf(name, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		c.fail(name, "", "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (c *checker) name(setting, kind, value string) {
	if err := identity.ValidateName(kind, value); err != nil {
		c.fail(setting, "", "%v", err)
	}
}

func (c *checker) host(setting, value string) {
	if _, err := wire.NormalizeHost(value); err != nil {
		c.fail(setting, "", "%v", err)
	}
}

func (c *checker) rules(setting string, rules []string) {
	for _, text := range rules {
		r, err := policy.ParseRule(text)
		if err == nil && setting == "allow" && r.IsGateway() {
			err = policy.ErrGatewayRule
		}
		if err != nil {
			c.fail(setting, "", "%v", err)
		}
	}
}

func (c *checker) drain(d time.Duration) {
	if d < 0 || d > maxDrain {
		c.fail("drain-timeout", "", "%v is out of bounds: want between 0s and %v", d, maxDrain)
	}
}

// trust checks how the hub's certificate is verified.
func (c *checker) trust(pin string) {
	if pin == "" {
		return
	}
	digest, ok := strings.CutPrefix(pin, "sha256:")
	if b, err := hex.DecodeString(digest); !ok || err != nil || len(b) != 32 {
		c.fail("ca-pin", "copy the line that the hub prints at its start", "%q is not a pin: want sha256: and 64 hexadecimal digits", pin)
	}
}

func (c *checker) connectURL(setting, value string) {
	const mend = "write tls://HOST or tls://HOST:PORT, for example tls://hub.example.org:4222, or wss://HOST where only web traffic passes"
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Hostname() == "" && !strings.Contains(value, "://"):
		c.fail(setting, mend, "%q is not a URL", redactURL(value))
	case u.Scheme != "tls" && u.Scheme != "https" && u.Scheme != "wss":
		c.fail(setting, mend, "%q begins with %q", redactURL(value), u.Scheme+"://")
	case u.Hostname() == "":
		c.fail(setting, mend, "%q names no host", redactURL(value))
	case u.User != nil:
		c.fail(setting, mend, "%q carries a user name; credentials belong in --token-file", redactURL(value))
	case u.Path != "" && u.Path != "/" && u.Scheme != "wss" || u.RawQuery != "" || u.Fragment != "":
		c.fail(setting, mend, "%q has more than a host and a port", redactURL(value))
	case u.Port() != "" && !validPort(u.Port(), false):
		c.fail(setting, mend, "%q: the port must be between 1 and 65535", value)
	}
}

func (c *checker) proxyURL(value string) {
	const setting = "proxy-url"
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		c.fail(setting, "write http://HOST:PORT or https://HOST:PORT", "%q is not the address of an HTTP proxy", redactURL(value))
		return
	}
	if _, secret := u.User.Password(); secret && c.set.Field(setting).origin.Source == SourceFlag {
		c.fail(setting, "put the URL into AGENT_PROXY or the configuration file", "a password on the command line can be read by everybody on this machine")
	}
}

// listenAddr checks HOST:PORT to listen on, and reports whether it can be used.
func (c *checker) listenAddr(setting, value string) bool {
	if err := checkListen(value); err != "" {
		c.fail(setting, "write HOST:PORT, for example 127.0.0.1:4222, [::1]:4222, or :4222 for all addresses", "%q %s", value, err)
		return false
	}
	return true
}

// checkListen says what is wrong with an address to listen on, or "".
func checkListen(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "is not an address to listen on"
	}
	if !validPort(port, true) {
		return "has no port between 0 and 65535"
	}
	if host == "" {
		return ""
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "" // zones are fine here, unlike in a target
	}
	if _, err := wire.NormalizeHost(host); err != nil {
		return "names no host or IP address"
	}
	return ""
}

// Loopback reports whether an address to listen on can only be reached from
// this machine: a loopback address, or the name localhost.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// ephemeral reports whether an address leaves the port to the system.
func ephemeral(addr string) bool {
	_, port, _ := net.SplitHostPort(addr)
	return port == "0"
}

func validPort(s string, zero bool) bool {
	p, err := strconv.ParseUint(s, 10, 16)
	return err == nil && (zero || p != 0)
}

package uplink

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"postern.dev/postern/internal/wire"
)

// Endpoint is the one port of a hub or relay.
type Endpoint struct {
	Scheme string // tls, https or wss
	Host   string // a DNS name in lower case, or an IP address without brackets
	Port   uint16
	Path   string // of wss, escaped, with a slash in front; empty for the others
}

// defaultPath is where a hub takes WebSockets.
const defaultPath = "/v1/connect"

// maxURLLen bounds connect and proxy URLs, in bytes.
const maxURLLen = 2048

// ParseConnectURL reads tls://HOST[:PORT], whose port is 4222 unless given, or
// https://HOST[:PORT], or wss://HOST[:PORT][/PATH], whose port is 443 unless given.
// An IPv6 address stands in brackets. The URL has no user, query or fragment, and a
// path only behind wss, where /v1/connect is meant if there is none; one final slash
// is let pass.
func ParseConnectURL(s string) (Endpoint, error) {
	const want = "want tls://HOST[:4222], https://HOST[:443] or wss://HOST[:443]"
	switch {
	case s == "":
		return Endpoint{}, fmt.Errorf("connect URL is missing: %s", want)
	case len(s) > maxURLLen:
		return Endpoint{}, fmt.Errorf("connect URL is %d bytes long; at most %d are allowed", len(s), maxURLLen)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Endpoint{}, fmt.Errorf("connect URL %q has no scheme: %s; for example tls://%s", printable(s), want, printable(s))
	}
	e := Endpoint{Scheme: strings.ToLower(scheme)}
	switch e.Scheme {
	case "tls":
		e.Port = 4222
	case "https", "wss":
		e.Port = 443
	default:
		return Endpoint{}, fmt.Errorf("connect URL has the scheme %q: %s", printable(scheme), want)
	}
	if strings.Contains(rest, "@") {
		// Not printed: what stands before the @ may be a password.
		return Endpoint{}, fmt.Errorf("connect URL has a user or password in it: %s; credentials belong into a token file", want)
	}
	u, err := url.Parse(e.Scheme + "://" + rest)
	if err != nil {
		return Endpoint{}, fmt.Errorf("connect URL %q does not parse: %s", printable(s), want)
	}
	if e.Scheme == "wss" {
		if e.Path = u.EscapedPath(); e.Path == "" || e.Path == "/" {
			e.Path = defaultPath
		}
		u.Path = ""
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#") {
		return Endpoint{}, fmt.Errorf("connect URL %q has more than a host and port: %s", printable(s), want)
	}
	if e.Host, err = wire.NormalizeHost(u.Hostname()); err != nil {
		return Endpoint{}, fmt.Errorf("connect URL %q: %w", printable(s), err)
	}
	if p := u.Port(); p != "" || strings.HasSuffix(u.Host, ":") {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return Endpoint{}, fmt.Errorf("connect URL %q: port must be a number between 1 and 65535", printable(s))
		}
		e.Port = uint16(n)
	}
	return e, nil
}

// Address returns HOST:PORT, an IPv6 address in brackets.
func (e Endpoint) Address() string { return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port))) }

// String returns the connect URL with its port, and with its path unless that is
// the usual one.
func (e Endpoint) String() string {
	s := e.Scheme + "://" + e.Address()
	if e.Path != defaultPath {
		s += e.Path
	}
	return s
}

// WebSocket says whether the port is reached by WebSocket.
func (e Endpoint) WebSocket() bool { return e.Scheme == "wss" }

// BaseURL returns the https URL of the hub's API on the same port, without a
// slash at its end.
func (e Endpoint) BaseURL() string { return "https://" + e.Address() }

// printable shortens what a person typed so that an error stays one line.
func printable(s string) string { return wire.Clip(s, 200) }

package proxy

import (
	"encoding/base64"
	"net"
	"strconv"
	"strings"
	"unicode/utf8"

	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wire"
)

const (
	maxFields   = 128 // header fields of a CONNECT
	maxRepeated = 100 // bytes of what of a request is repeated in a message
)

// connectRequest is a CONNECT, read.
type connectRequest struct {
	host  string
	port  uint16
	login Login
	trace observe.Trace
}

// parseConnect reads the header block of a CONNECT request (RFC 9110 section
// 9.3.6, RFC 9112 section 3.2.3). It refuses what different readers could read
// differently: a body, folded lines, bare CR, repeated credentials.
func parseConnect(head string) (connectRequest, *wire.Failure) {
	var req connectRequest
	line, rest, _ := cutLine(head)
	authority, ok := strings.CutPrefix(line, "CONNECT ")
	authority, version, ok2 := strings.Cut(authority, " ")
	if !ok || !ok2 {
		return req, badRequest("the request line is malformed")
	}
	if version != "HTTP/1.1" && version != "HTTP/1.0" {
		return req, badRequest("the version %q is not HTTP/1.1 or HTTP/1.0", wire.Clip(version, maxRepeated))
	}
	var f *wire.Failure
	if req.host, req.port, f = parseAuthority(authority); f != nil {
		return req, f
	}
	hosts, logins := 0, 0
	for n := 0; ; n++ {
		if line, rest, ok = cutLine(rest); !ok || line == "" {
			break
		}
		if n >= maxFields {
			return req, badRequest("the request has more than %d header fields", maxFields)
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) || !isFieldValue(value) {
			return req, badRequest("header field %d is malformed", n+1)
		}
		value = strings.Trim(value, " \t")
		switch {
		case strings.EqualFold(name, "Host"):
			hosts++
		case strings.EqualFold(name, "Transfer-Encoding"), strings.EqualFold(name, "Content-Length") && value != "0":
			return req, badRequest("a CONNECT request has no body")
		case strings.EqualFold(name, "traceparent"):
			req.trace, _ = observe.ParseTrace(value) // a bad one counts as none (W3C Trace Context §3.2)
		case strings.EqualFold(name, "Proxy-Authorization"):
			logins++
			if req.login, f = parseLogin(value); f != nil {
				return req, f
			}
		}
	}
	if hosts > 1 || logins > 1 {
		return req, badRequest("a header field that may stand once stands twice")
	}
	return req, nil
}

// cutLine returns the line before the next LF, without CR LF.
func cutLine(s string) (line, rest string, ok bool) {
	line, rest, ok = strings.Cut(s, "\n")
	return strings.TrimSuffix(line, "\r"), rest, ok
}

// parseAuthority reads HOST:PORT; an IPv6 address stands in brackets.
func parseAuthority(s string) (string, uint16, *wire.Failure) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || strings.ContainsRune(host, ':') != strings.HasPrefix(s, "[") {
		return "", 0, badRequest("the target %q is not HOST:PORT", wire.Clip(s, maxRepeated))
	}
	n, f := parsePort(port)
	if f != nil {
		return "", 0, f
	}
	return host, n, nil
}

func parsePort(s string) (uint16, *wire.Failure) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' || len(s) > len("65535") {
		return 0, badRequest("the port %q is not a number between 1 and 65535", wire.Clip(s, maxRepeated))
	}
	return uint16(n), nil
}

// parseLogin reads the value of a Proxy-Authorization field (RFC 7617). Other
// schemes than Basic count as no credentials, so that the answer is the
// challenge.
func parseLogin(value string) (Login, *wire.Failure) {
	scheme, encoded, ok := strings.Cut(value, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return Login{}, nil
	}
	encoded = strings.Trim(encoded, " ")
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil { // some clients leave the padding out
		raw, err = base64.RawStdEncoding.Strict().DecodeString(encoded)
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || !isUserText(user) || !isUserText(password) {
		return Login{}, badRequest("the Proxy-Authorization field is malformed")
	}
	return Login{User: user, Password: password, Given: true}, nil
}

// isUserText reports whether s may be a user name or password: UTF-8 without
// control characters (RFC 7617 section 2).
func isUserText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// isToken reports whether s is a token of RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// isFieldValue reports whether s has no control characters but tabs.
func isFieldValue(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

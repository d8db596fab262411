package proxy

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/wire"
)

// answer is how a failure is told to an HTTP client.
type answer struct {
	status int
	kind   string // the error type of RFC 9209 section 2.3
	retry  int    // seconds for Retry-After; 0 for none
}

// answerFor maps a failure to a status and an error type. target may be zero.
func answerFor(f *wire.Failure, target wire.Target) answer {
	switch f.Code {
	case wire.CodeBadRequest:
		return answer{http.StatusBadRequest, "http_request_error", 0}
	case wire.CodeDenied:
		if _, err := netip.ParseAddr(target.Host); err == nil {
			return answer{http.StatusForbidden, "destination_ip_prohibited", 0}
		}
		return answer{http.StatusForbidden, "http_request_denied", 0}
	case wire.CodeUnauthenticated:
		if f.Leg == wire.LegClient {
			return answer{http.StatusProxyAuthRequired, "http_request_denied", 0}
		}
		return answer{http.StatusBadGateway, "proxy_configuration_error", 0}
	case wire.CodeNoAgent:
		return answer{http.StatusServiceUnavailable, "destination_unavailable", 5}
	case wire.CodeOverloaded:
		return answer{http.StatusServiceUnavailable, "connection_limit_reached", 5}
	case wire.CodeDraining:
		return answer{http.StatusServiceUnavailable, "destination_unavailable", 1}
	case wire.CodeTimeout:
		switch f.Leg {
		case wire.LegDNS:
			return answer{http.StatusGatewayTimeout, "dns_timeout", 0}
		case wire.LegTarget:
			return answer{http.StatusGatewayTimeout, "http_response_timeout", 0}
		case wire.LegClient:
			return answer{http.StatusRequestTimeout, "http_request_error", 0}
		default:
			return answer{http.StatusGatewayTimeout, "connection_timeout", 0}
		}
	case wire.CodeNameNotFound, wire.CodeNameFailed:
		return answer{http.StatusBadGateway, "dns_error", 0}
	case wire.CodeRefused:
		return answer{http.StatusBadGateway, "connection_refused", 0}
	case wire.CodeUnreachable:
		return answer{http.StatusBadGateway, "destination_ip_unroutable", 0}
	case wire.CodeReset, wire.CodeLost, wire.CodeCanceled:
		return answer{http.StatusBadGateway, "connection_terminated", 0}
	case wire.CodeProtocol:
		if f.Leg == wire.LegTarget {
			return answer{http.StatusBadGateway, "http_protocol_error", 0}
		}
		return answer{http.StatusBadGateway, "proxy_internal_error", 0}
	default:
		if f.Leg == wire.LegProxy {
			return answer{http.StatusInternalServerError, "proxy_internal_error", 0}
		}
		return answer{http.StatusBadGateway, "proxy_internal_error", 0}
	}
}

// challenge is the Proxy-Authenticate field of a 407 (RFC 7617).
const challenge = `Basic realm="postern", charset="UTF-8"`

// fields returns the header and the body that tell of the failure.
func (a answer) fields(f *wire.Failure) (http.Header, string) {
	h := http.Header{
		"Content-Type":           {"text/plain; charset=utf-8"},
		"X-Content-Type-Options": {"nosniff"},
		"Cache-Control":          {"no-store"},
		"Proxy-Status":           {"postern; error=" + a.kind + "; details=" + sfString(details(f))},
	}
	if a.status == http.StatusProxyAuthRequired {
		h["Proxy-Authenticate"] = []string{challenge}
	}
	if a.retry > 0 {
		h["Retry-After"] = []string{strconv.Itoa(a.retry)}
	}
	body := "postern: " + details(f) + "\n"
	if f.Hint != "" {
		body += "hint: " + f.Hint + "\n"
	}
	return h, body
}

func details(f *wire.Failure) string {
	text := f.Text
	if text == "" {
		text = f.Code.String()
	}
	return f.Leg.String() + ": " + text
}

// sfString writes a string of a structured field (RFC 8941 section 3.3.3),
// which knows only printable ASCII.
func sfString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r > 0x7e:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// maxReason bounds the reason phrase, in bytes.
const maxReason = 200

// reason returns the reason phrase (RFC 9112 section 4). Clients such as kubectl
// print it as all that they have to say of a CONNECT that failed, so it tells more
// than the status does.
func (a answer) reason(f *wire.Failure) string {
	text := http.StatusText(a.status) + ": postern: " + details(f)
	text = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, text)
	return text[:min(len(text), maxReason)]
}

// response returns a whole HTTP/1.1 response, after which the connection closes.
func (a answer) response(f *wire.Failure) []byte {
	h, body := a.fields(f)
	h.Set("Connection", "close")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	var b strings.Builder
	b.WriteString("HTTP/1.1 " + strconv.Itoa(a.status) + " " + a.reason(f) + "\r\n")
	_ = h.Write(&b) // into memory
	b.WriteString("\r\n" + body)
	return []byte(b.String())
}

// The reply codes of RFC 1928 section 6.
const (
	socksSucceeded          = 0x00
	socksGeneral            = 0x01
	socksDenied             = 0x02
	socksNetworkUnreachable = 0x03
	socksHostUnreachable    = 0x04
	socksRefused            = 0x05
	socksExpired            = 0x06
	socksBadCommand         = 0x07
	socksBadAddress         = 0x08
)

// socksReply maps a failure to a reply code.
func socksReply(f *wire.Failure) byte {
	switch f.Code {
	case wire.CodeDenied, wire.CodeUnauthenticated:
		return socksDenied
	case wire.CodeNameNotFound, wire.CodeNameFailed:
		return socksHostUnreachable
	case wire.CodeUnreachable:
		return socksNetworkUnreachable
	case wire.CodeRefused:
		return socksRefused
	case wire.CodeTimeout:
		if f.Leg == wire.LegDNS {
			return socksHostUnreachable
		}
		return socksExpired
	default:
		return socksGeneral
	}
}

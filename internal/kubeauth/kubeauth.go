// Package kubeauth knows where a request to a Kubernetes API server names somebody or
// proves who he is: in which fields, and in which subprotocols of a WebSocket. Both
// ends of the gateway go by it, so that what one of them overlooks does not speak for
// somebody at the other.
//
// It is stricter than any server behind it: a spelling counts as dangerous if some
// server might read it, and as a credential only if all do.
package kubeauth

import (
	"encoding/base64"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"unicode/utf8"
)

// The fields with which a caller of Kubernetes asks to be somebody else.
const (
	FieldUser  = "Impersonate-User"
	FieldUID   = "Impersonate-Uid"
	FieldGroup = "Impersonate-Group"
	FieldExtra = "Impersonate-Extra-" // followed by the attribute's key
)

// BearerProtocol begins the subprotocol in which a WebSocket of a browser, which cannot
// set Authorization, shows a token to Kubernetes, in base64url.
const BearerProtocol = "base64url.bearer.authorization.k8s.io."

const (
	fieldProtocol      = "Sec-Websocket-Protocol"
	fieldAuthorization = "Authorization"
	fieldsWish         = "impersonate-"
)

// Speaks reports whether a field names somebody or proves who he is, in any spelling
// that a server may take for it.
func Speaks(field string) bool {
	switch name := plain(field); name {
	case "authorization", "cookie", "forwarded":
		return true
	default:
		return slices.ContainsFunc([]string{fieldsWish, "x-remote-", "postern-", "proxy-", "x-forwarded-", "x-real-ip"}, func(p string) bool {
			return strings.HasPrefix(name, p)
		})
	}
}

// plain returns a field's name as the most careless server reads it.
func plain(field string) string { return strings.ToLower(strings.ReplaceAll(field, "_", "-")) }

// Strip takes out of a request everything that Speaks, and tokens out of a WebSocket's
// subprotocols. With own, what the cluster is to judge itself stays: the caller's
// Authorization and token, and whom he wishes to be, in the proper spelling.
func Strip(h http.Header, own bool) {
	for field := range h {
		name := plain(field)
		mine := own && (name == "authorization" || strings.HasPrefix(name, fieldsWish)) && !strings.Contains(field, "_")
		if Speaks(field) && !mine {
			delete(h, field)
		}
	}
	if !own {
		dropTokens(h)
	}
}

// Token returns the bearer token that a request shows, or "": by Authorization, or, if
// it has none, as the one token among the subprotocols of a WebSocket.
func Token(h http.Header) string {
	if values, ok := h[fieldAuthorization]; ok {
		if len(values) != 1 {
			return "" // servers differ in which one they take
		}
		if kind, token, ok := strings.Cut(values[0], " "); ok && strings.EqualFold(kind, "Bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	if !lists(h, "Connection", "upgrade") || !strings.EqualFold(h.Get("Upgrade"), "websocket") {
		return ""
	}
	var found string
	for _, p := range protocols(h) {
		if !bearsToken(p) {
			continue
		}
		text, exact := strings.CutPrefix(p, BearerProtocol) // API servers tell capitals apart
		token, err := base64.RawURLEncoding.DecodeString(text)
		if !exact || found != "" || err != nil || !utf8.Valid(token) {
			return ""
		}
		found = string(token)
	}
	return found
}

// Shows reports whether a request has anything at all by which its caller may mean to
// prove who he is to the cluster.
func Shows(h http.Header) bool {
	return len(h[fieldAuthorization]) > 0 || slices.ContainsFunc(protocols(h), bearsToken)
}

// bearsToken reports whether a subprotocol is there for its token, good or not.
func bearsToken(protocol string) bool {
	return len(protocol) >= len(BearerProtocol) && strings.EqualFold(protocol[:len(BearerProtocol)], BearerProtocol)
}

// dropTokens takes tokens out of the subprotocols that a WebSocket offers.
func dropTokens(h http.Header) {
	all := protocols(h)
	rest := slices.DeleteFunc(slices.Clone(all), bearsToken)
	switch {
	case len(rest) == len(all):
	case len(rest) == 0:
		h.Del(fieldProtocol)
	default:
		h.Set(fieldProtocol, strings.Join(rest, ", "))
	}
}

// protocols returns the subprotocols that a WebSocket offers.
func protocols(h http.Header) (all []string) {
	for _, line := range h[fieldProtocol] {
		for one := range strings.SplitSeq(line, ",") {
			if one = strings.TrimSpace(one); one != "" {
				all = append(all, one)
			}
		}
	}
	return all
}

// lists reports whether a comma-separated field lists a word.
func lists(h http.Header, field, word string) bool {
	for _, line := range h[field] {
		for one := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(textproto.TrimString(one), word) {
				return true
			}
		}
	}
	return false
}

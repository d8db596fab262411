package impersonate

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/kubeauth"
	"postern.dev/postern/internal/wire"
)

// ownExtra begins the keys of extras that only the hub sets.
const ownExtra = "postern.dev/"

// impersonate sets the fields that name an identity; none for nobody.
func impersonate(h http.Header, i assertion.Identity) {
	if i.User == "" {
		return
	}
	h.Set(kubeauth.FieldUser, i.User)
	if i.UID != "" {
		h.Set(kubeauth.FieldUID, i.UID)
	}
	if len(i.Groups) > 0 {
		h[kubeauth.FieldGroup] = slices.Clone(i.Groups)
	}
	for key, values := range i.Extra {
		// Not Set: the API server folds the case of keys, and % signs are to stay.
		h[kubeauth.FieldExtra+escapeKey(key)] = slices.Clone(values)
	}
}

// escapeKey writes an extra's key as a part of a field's name, which the API server
// undoes: bytes that no field's name may have, as percent signs.
func escapeKey(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; c != '%' && isToken(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// isToken reports whether a field's name may have a byte (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// vouched checks an identity that the hub vouches for. What would be more than RBAC
// can restrict is refused, whatever the hub was told to say.
func vouched(i assertion.Identity) error {
	if err := sendable(i); err != nil {
		return err
	}
	if slices.Contains(i.Groups, "system:masters") {
		return wire.Fail(wire.LegAgent, wire.CodeDenied, "the agent makes nobody a member of system:masters, whom RBAC does not restrict")
	}
	if strings.HasPrefix(i.User, "system:") && !strings.HasPrefix(i.User, "system:serviceaccount:") {
		return wire.Fail(wire.LegAgent, wire.CodeDenied, "the agent lets nobody be %q, which is a part of the cluster", i.User)
	}
	return nil
}

// sendable says whether an identity survives the way in fields of HTTP: what is
// trimmed or cut there would become somebody else.
func sendable(i assertion.Identity) error {
	texts := append([]string{i.User}, i.Groups...)
	if i.UID != "" {
		texts = append(texts, i.UID)
	}
	for key, values := range i.Extra {
		if key == "" || key != strings.ToLower(key) {
			return wire.Fail(wire.LegAgent, wire.CodeBadRequest, "the extra %q is not written in small letters", key)
		}
		texts = append(texts, values...)
	}
	for _, text := range texts {
		if text == "" || strings.TrimSpace(text) != text || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return wire.Fail(wire.LegAgent, wire.CodeBadRequest, "%q cannot be the name of anybody or anything that a request names", text)
		}
	}
	return nil
}

// exactly returns the URL whose request target is what came, byte for byte.
func exactly(scheme, host, target string) *url.URL {
	path, query, asked := strings.Cut(target, "?")
	u := &url.URL{Scheme: scheme, Host: host, RawQuery: query, ForceQuery: asked && query == ""}
	if plain, err := url.PathUnescape(path); err == nil {
		u.Path, u.RawPath = plain, path
	}
	if u.EscapedPath() != path { // it has bytes that net/url escapes
		u.Path, u.RawPath, u.Opaque = "", "", path
		if strings.HasPrefix(path, "//") {
			u.Opaque = "//" + host + path
		}
	}
	return u
}

// carryTrailer returns the trailer of the request that is sent on: what in announces,
// once its body has ended, but nothing that could name somebody.
func carryTrailer(in, out *http.Request) http.Header {
	if len(in.Trailer) == 0 || out.Body == nil {
		return nil
	}
	trailer := make(http.Header, len(in.Trailer))
	for field := range in.Trailer {
		trailer[field] = nil
	}
	kubeauth.Strip(trailer, false)
	out.Body = &trailed{out.Body, in.Trailer, trailer}
	return trailer
}

// trailed is a body behind which a trailer comes.
type trailed struct {
	io.ReadCloser
	from, to http.Header
}

// Read implements io.Reader.
func (t *trailed) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if err == io.EOF {
		for field := range t.to {
			t.to[field] = t.from[field]
		}
	}
	return n, err
}

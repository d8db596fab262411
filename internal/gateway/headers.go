package gateway

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/kubeauth"
	"postern.dev/postern/internal/wire"
)

// Bounds of what a caller may wish to be.
const (
	maxWishes = 64   // groups, and extra attributes
	maxWish   = 1024 // bytes of each
)

// wish returns whom a caller asks to be, by his own fields. It reads the request as it
// came: a field that Connection names is a wish too, and forgetting it would give the
// caller more than he asked for.
func wish(h http.Header) (assertion.Identity, error) {
	bad := func(format string, args ...any) (assertion.Identity, error) {
		return assertion.Identity{}, wire.Fail(wire.LegClient, wire.CodeBadRequest, format, args...)
	}
	var i assertion.Identity
	n := 0
	for field, values := range h {
		if !strings.HasPrefix(field, "Impersonate-") {
			continue
		}
		if slices.ContainsFunc(append(values, field), func(s string) bool { return len(s) > maxWish }) {
			return bad("%s has more than %d bytes", wire.Clip(field, 100), maxWish)
		}
		key, extra := strings.CutPrefix(field, kubeauth.FieldExtra)
		switch {
		case field == kubeauth.FieldUser || field == kubeauth.FieldUID:
			if len(values) != 1 {
				return bad("%s stands there more than once", field)
			}
		case field == kubeauth.FieldGroup:
			n += len(values)
			i.Groups = append(i.Groups, values...)
		case extra:
			n += len(values)
			key, err := url.PathUnescape(key)
			if err != nil || key == "" {
				return bad("%s names no extra attribute", wire.Clip(field, 100))
			}
			if i.Extra == nil {
				i.Extra = make(map[string][]string)
			}
			key = strings.ToLower(key)
			i.Extra[key] = append(i.Extra[key], values...)
		}
	}
	i.User, i.UID = h.Get(kubeauth.FieldUser), h.Get(kubeauth.FieldUID)
	switch {
	case n > maxWishes:
		return bad("the request wishes for %d groups and extra attributes, and %d are possible", n, maxWishes)
	case i.User == "" && !i.IsZero():
		return bad("the request wishes for groups, a UID or extra attributes and names no user: " + kubeauth.FieldUser)
	}
	return i, nil
}

// keepWish gives a request that is passed on with the caller's own credentials the
// caller's wishes back, which the cluster judges itself. They are those of the request as
// it came, see wish.
func keepWish(out, in http.Header) {
	for field, values := range in {
		if strings.HasPrefix(field, "Impersonate-") {
			out[field] = values
		}
	}
}

// tame takes out of an answer what would act on the hub's own site, on which every
// cluster answers: cookies, and instructions to browsers about all of the site. Nor
// may a page of a cluster be one of the hub's.
func tame(h http.Header) {
	for _, field := range []string{
		"Set-Cookie", "Alt-Svc", "Strict-Transport-Security", "Public-Key-Pins", "Clear-Site-Data", "Service-Worker-Allowed", "Proxy-Authenticate",
	} {
		h.Del(field)
	}
	for field := range h {
		if strings.HasPrefix(field, "Postern-") {
			delete(h, field)
		}
	}
	h.Add("Content-Security-Policy", "sandbox")
	h.Set("X-Content-Type-Options", "nosniff")
}

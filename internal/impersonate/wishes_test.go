package impersonate

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/kubeauth"
)

// as returns the claims of ann, who wishes to be somebody else.
func as(i assertion.Identity) assertion.Claims {
	c := ann()
	c.As = i
	return c
}

func TestAs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.may = func(attributes) string { return "" }
	wish := assertion.Identity{User: "bob", UID: "7", Groups: []string{"dev", "ops"}, Extra: map[string][]string{"scopes": {"view", "edit"}}}
	if answer, body := w.send(w.request(as(wish), nil)); answer.StatusCode != http.StatusOK {
		t.Fatal(body)
	}
	h := w.requests()[0].Header
	if h.Get("Impersonate-User") != "bob" || h.Get("Impersonate-Uid") != "7" || !slices.Equal(h["Impersonate-Group"], []string{"dev", "ops"}) ||
		!slices.Equal(h["Impersonate-Extra-Scopes"], []string{"view", "edit"}) || !slices.Equal(h["Impersonate-Extra-Postern.dev%2fprincipal"], []string{"user:ann@example.org"}) {
		t.Errorf("the API server sees %v", h)
	}
	want := []attributes{
		{Verb: "impersonate", Version: "v1", Resource: "users", Name: "bob"},
		{Verb: "impersonate", Version: "v1", Group: "authentication.k8s.io", Resource: "uids", Name: "7"},
		{Verb: "impersonate", Version: "v1", Resource: "groups", Name: "dev"},
		{Verb: "impersonate", Version: "v1", Resource: "groups", Name: "ops"},
		{Verb: "impersonate", Version: "v1", Group: "authentication.k8s.io", Resource: "userextras", Subresource: "scopes", Name: "view"},
		{Verb: "impersonate", Version: "v1", Group: "authentication.k8s.io", Resource: "userextras", Subresource: "scopes", Name: "edit"},
	}
	var got []attributes
	for _, r := range w.reviews {
		got = append(got, r.Spec.Resource)
		if r.APIVersion != "authorization.k8s.io/v1" || r.Kind != "SubjectAccessReview" || r.Spec.User != "ann@example.org" ||
			!slices.Equal(r.Spec.Groups, ann().Impersonate.Groups) || len(r.Spec.Extra) != 1 {
			t.Errorf("asked is %+v", r)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// The answers are good for a while, for her and this alone.
	w.reviews = nil
	if answer, body := w.send(w.request(as(assertion.Identity{User: "bob", Groups: []string{"ops", "sec"}}), nil)); answer.StatusCode != http.StatusOK {
		t.Fatal(body)
	}
	if len(w.reviews) != 1 || w.reviews[0].Spec.Resource.Name != "sec" {
		t.Errorf("asked again: %+v", w.reviews)
	}
	c := as(assertion.Identity{User: "bob"})
	c.Impersonate.User = "eve"
	w.may = func(attributes) string { return "no" }
	answer, body := w.send(w.request(c, nil))
	isStatus(t, answer, body, http.StatusForbidden, `users "bob" is forbidden: User "eve"`)
}

func TestAsIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.may = func(a attributes) string {
		if a.Resource == "users" && a.Name == "bob" {
			return ""
		}
		return "no RBAC policy matched"
	}
	many := assertion.Identity{User: "bob"}
	for i := range maxWishes {
		many.Groups = append(many.Groups, "g"+strconv.Itoa(i))
	}
	for name, tt := range map[string]struct {
		wish assertion.Identity
		code int
		text string
	}{
		"a user":             {assertion.Identity{User: "root"}, 403, `users "root" is forbidden: User "ann@example.org" cannot impersonate resource "users" in API group "" at the cluster scope: no RBAC`},
		"a group":            {assertion.Identity{User: "bob", Groups: []string{"system:masters"}}, 403, `groups "system:masters" is forbidden`},
		"a UID":              {assertion.Identity{User: "bob", UID: "0"}, 403, `uids "0" is forbidden`},
		"an extra":           {assertion.Identity{User: "bob", Extra: map[string][]string{"scopes": {"all"}}}, 403, `userextras/scopes "all" is forbidden`},
		"a service account":  {assertion.Identity{User: "system:serviceaccount:kube-system:root"}, 403, `serviceaccounts "root" is forbidden: User "ann@example.org" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "kube-system"`},
		"the hub's extras":   {assertion.Identity{User: "bob", Extra: map[string][]string{"postern.dev/principal": {"user:eve"}}}, 403, "is the hub's to set"},
		"too much":           {many, 400, "129 things"},
		"a name with spaces": {assertion.Identity{User: "bob", Groups: []string{"system:masters "}}, 400, "cannot be the name"},
		"capitals":           {assertion.Identity{User: "bob", Extra: map[string][]string{"Postern.dev/principal": {"a"}}}, 400, "small letters"},
	} {
		answer, body := w.send(w.request(as(tt.wish), nil))
		isStatus(t, answer, body, tt.code, tt.text)
		if len(w.requests()) > 0 {
			t.Fatalf("%s: it is acted upon", name)
		}
	}
	w.may = func(attributes) string { return "fail" }
	answer, body := w.send(w.request(as(assertion.Identity{User: "carl"}), nil))
	isStatus(t, answer, body, http.StatusBadGateway, "agent cannot create subjectaccessreviews")
}

// TestWishesAreForgotten: an answer is good for seconds, and a bounded number is
// remembered.
func TestWishesAreForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.may = func(attributes) string { return "" }
	at := time.Now()
	wishes := w.server.wishes
	wishes.now = func() time.Time { return at }
	ask := func(who string) {
		t.Helper()
		if _, err := wishes.ask(t.Context(), assertion.Identity{User: who}, attributes{Verb: "impersonate", Resource: "users", Name: "bob"}); err != nil {
			t.Fatal(err)
		}
	}
	ask("ann")
	at = at.Add(wishMemory - 1)
	ask("ann")
	if len(w.reviews) != 1 {
		t.Errorf("asked %d times within the time", len(w.reviews))
	}
	at = at.Add(1)
	ask("ann")
	if len(w.reviews) != 2 {
		t.Errorf("asked %d times after it", len(w.reviews))
	}
	for i := range maxKnown {
		wishes.known[[32]byte{1, byte(i), byte(i >> 8)}] = knownWish{verdict{}, at.Add(time.Second)}
	}
	ask("eve")
	if len(wishes.known) > maxKnown+1 {
		t.Errorf("%d are remembered", len(wishes.known))
	}
	at = at.Add(time.Minute)
	ask("dan")
	if len(wishes.known) != 1 {
		t.Errorf("%d are remembered after all have ended", len(wishes.known))
	}
}

// FuzzHeaders: whatever a request's header has, only the hub's word names somebody.
func FuzzHeaders(f *testing.F) {
	f.Add("Impersonate-User", "root", true)
	f.Add("impersonate_extra_a", "root", false)
	f.Add("Sec-Websocket-Protocol", "base64url.bearer.authorization.k8s.io.YQ, v4", false)
	f.Add("AUTHORIZATION", "Bearer x", true)
	f.Fuzz(func(t *testing.T, field, value string, pass bool) {
		h := http.Header{}
		h.Add(field, value)
		h[field] = append(h[field], value)
		kubeauth.Strip(h, pass)
		impersonate(h, ann().Impersonate)
		for name, values := range h {
			plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
			switch {
			case strings.HasPrefix(plain, "x-remote-"), strings.HasPrefix(plain, "postern-"):
				t.Fatalf("%q stays", name)
			case pass:
			case plain == "authorization", kubeauth.Shows(h):
				t.Fatalf("%q: %q stays", name, values)
			case strings.HasPrefix(plain, "impersonate-") && name != kubeauth.FieldUser && name != kubeauth.FieldGroup && name != kubeauth.FieldExtra+"postern.dev%2Fprincipal":
				t.Fatalf("%q stays", name)
			}
		}
		if !pass && (h.Get(kubeauth.FieldUser) != "ann@example.org" || len(h[kubeauth.FieldUser]) != 1 || len(h[kubeauth.FieldGroup]) != 2) {
			t.Fatalf("%v", h)
		}
	})
}

// FuzzExactly: a request target that can be sent is sent as it came.
func FuzzExactly(f *testing.F) {
	for _, s := range []string{"/", "//a", "/a%2fb?c=%zz", "/|", "//|?", "/a?", "/%", "/\u00e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		if !strings.HasPrefix(target, "/") {
			return
		}
		got := exactly("https", "api", target).RequestURI()
		if got != target && got != "https://api"+target {
			t.Fatalf("%q is sent as %q", target, got)
		}
	})
}

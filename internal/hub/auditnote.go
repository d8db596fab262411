package hub

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// note gathers, while a request is handled, what the audit log is to say of it.
type note struct {
	caller Caller          // the zero one: nobody proved who he is
	need   role.Permission // of the route
	held   bool            // the caller holds it
	object string          // what was changed; else the path and the answer tell
	what   string          // what was done to it; else the method tells
}

// noteKey is the context's key of a request's note.
type noteKey struct{}

// withNote gives a request its note.
func withNote(r *http.Request) (*http.Request, *note) {
	n := &note{}
	return r.WithContext(context.WithValue(r.Context(), noteKey{}, n)), n
}

// noteOf returns a request's note. Handlers may say in it what they know better than
// their path; what it says must hold no secret.
func noteOf(r *http.Request) *note {
	if n, ok := r.Context().Value(noteKey{}).(*note); ok {
		return n
	}
	return &note{} // of a request that is not recorded
}

// recordRequest records a request that was answered: each change of something, each
// that was refused, and the first of each caller as a sign-in. body is the answer.
// It never looks at what the request's body holds.
func (a *API) recordRequest(r *http.Request, n *note, body any, err error) {
	known := n.caller.Kind != ""
	change := r.Method != http.MethodGet && r.Method != http.MethodHead
	if known {
		a.signedIn(r, n.caller)
	}
	if err == nil && !change {
		return
	}
	one := audit.Record{
		Action: audit.Change, Actor: n.caller.Principal, Source: sourceText(r), Object: n.object, What: n.what,
		Organization: a.auditedIn(r, n, err),
	}
	if one.Object == "" {
		one.Object = objectOf(r, body)
	}
	if one.What == "" {
		one.What = verbOf(r.Method)
	}
	one.Outcome(problemFailure(err), wire.LegHub)
	switch {
	case !known && err != nil:
		one.Action = audit.SignIn
		a.o.Flood.Record(one)
	case err != nil && !change:
		if one.Code == wire.CodeDenied.String() {
			one.Action = audit.Read
			a.o.Flood.Record(one)
		}
	case err != nil:
		a.o.Flood.Record(one)
	default:
		a.o.Audit.Record(one)
	}
}

// auditedIn returns in whose log a request belongs: that of the organization that it
// is about. What concerns the hub is the hub's, and so is a stranger's attempt. What
// somebody tries elsewhere than at home is told at his home: nobody writes into a
// log that is not his. A user is at home wherever he has a role.
func (a *API) auditedIn(r *http.Request, n *note, err error) string {
	org := cmp.Or(r.PathValue("org"), n.caller.Organization)
	switch {
	case n.need == role.Hub || n.caller.Kind == "":
		return ""
	case err == nil, n.held && !n.caller.everywhere():
		return org
	case n.caller.Kind == identity.KindUser && !n.caller.Hub && org != "" && a.holds(r.Context(), n.caller, org, role.Read) == nil:
		return org
	case !n.caller.everywhere():
		return n.caller.Organization
	}
	if _, err := a.o.Registry.Organization(r.Context(), org); org == "" || err != nil {
		return ""
	}
	return org
}

// signInAgain is after how long the same caller's coming from the same place is told again.
const signInAgain = time.Hour

// maxSignIns bounds how many of them are remembered.
const maxSignIns = 4096

// signIns remembers who was told to have signed in.
type signIns struct {
	mu  sync.Mutex
	all map[signIn]time.Time
}

type signIn struct {
	who, item, organization string
	from                    netip.Addr
}

// first reports whether this is the first of it for some time.
func (s *signIns) first(one signIn, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, there := s.all[one]; there && now.Sub(at) < signInAgain {
		return false
	}
	if s.all == nil || len(s.all) >= maxSignIns {
		s.all = make(map[signIn]time.Time) // some are told once more
	}
	s.all[one] = now
	return true
}

// signedIn records that somebody showed a good credential.
func (a *API) signedIn(r *http.Request, c Caller) {
	if !a.signIns.first(signIn{c.String(), c.Item, c.Organization, sourceOf(r)}, a.o.Now()) {
		return
	}
	one := audit.Record{Action: audit.SignIn, Organization: c.Organization, Actor: c.Principal, Source: sourceText(r), OK: true}
	if c.Item != "" {
		one.Object = "credential:" + c.Item
	}
	a.o.Audit.Record(one)
}

func sourceText(r *http.Request) string {
	if addr := sourceOf(r); addr.IsValid() {
		return addr.Unmap().String()
	}
	return ""
}

// problemFailure makes the failure of any error that the API answers with.
func problemFailure(err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*wire.Failure](err); ok {
		return f
	}
	return exchangeFailure(problemOf(err))
}

func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodDelete:
		return "delete"
	case http.MethodGet, http.MethodHead:
		return "read"
	default:
		return "set"
	}
}

// objectOf names what a request is about, by its route: robots/{robot}/tokens/{token}
// is "robot:ci/token:first". What was made is named by the answer.
func objectOf(r *http.Request, body any) string {
	_, path, _ := strings.Cut(r.Pattern, " ")
	segments := strings.Split(strings.TrimPrefix(path, "/v1/"), "/")
	if len(segments) > 2 && segments[1] == "{org}" {
		segments = segments[2:]
	}
	var parts []string
	for i := 0; i < len(segments); i++ {
		part := singular(segments[i])
		if strings.HasPrefix(part, "{") { // limits/{level}/{name}
			part = r.PathValue(strings.Trim(part, "{}."))
		}
		name := ""
		if i+1 < len(segments) && strings.HasPrefix(segments[i+1], "{") {
			i++
			name = r.PathValue(strings.Trim(segments[i], "{}."))
		} else if i == len(segments)-1 {
			name = nameOf(body)
		}
		if name != "" {
			part += ":" + name
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "/")
}

func singular(s string) string {
	if stem, ok := strings.CutSuffix(s, "ies"); ok {
		return stem + "y"
	}
	return strings.TrimSuffix(s, "s")
}

// nameOf returns what an answer calls the thing that was made. No other field of it
// is looked at: some hold secrets.
func nameOf(body any) string {
	v := reflect.ValueOf(body)
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return ""
	}
	for _, name := range []string{"AccessID", "ID", "Name"} {
		if f := v.FieldByName(name); f.IsValid() && f.Kind() == reflect.String {
			return f.String()
		}
	}
	return ""
}

// recordExchange records an exchange of a secret for credentials, or of an ID token
// for a session, which is a sign-in at the hub.
func (a *API) recordExchange(r *http.Request, n *note, form url.Values, err error) {
	one := audit.Record{
		Action: audit.Exchange, Organization: n.caller.Organization, Actor: n.caller.Principal, Source: sourceText(r), What: n.what,
		Object: clip(form.Get("role")) + ":" + clip(form.Get("name")), Replica: clip(form.Get("replica")),
	}
	if form.Get("role") == string(identity.RoleAgent) {
		one.Agent = clip(form.Get("name"))
	}
	if isSignIn(form) {
		one.Action, one.Object = audit.SignIn, n.object
	}
	one.Outcome(problemFailure(err), wire.LegHub)
	if err != nil {
		a.o.Flood.Record(one)
		return
	}
	one.Organization = form.Get("audience") // the administrator's may be any
	a.o.Audit.Record(one)
}

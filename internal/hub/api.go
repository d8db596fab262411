package hub

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/issuer"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// Limits of a request to the API.
const (
	maxBody     = 64 << 10         // bytes
	readLimit   = 15 * time.Second // to send the body
	handleLimit = 20 * time.Second // to do what is asked
	writeLimit  = time.Minute      // to take the answer
)

// BusUsers makes the credentials for the bus; *embedded.Server does.
type BusUsers interface {
	MintUser(org, userKey string, role identity.Role, name, replica string, ttl time.Duration) (string, error)
}

// Presence knows which replicas of agents an organization has. An organization
// that it does not know has none.
type Presence interface {
	Presence(org string) []bus.Presence
}

// APIOptions are the parts that the API puts together. All are needed unless it
// is said otherwise.
type APIOptions struct {
	State         *State
	Registry      *registry.Registry
	Authenticator *Authenticator
	Issuers       *oidc.Verifier // of workloads' tokens; nil: no workload enrols
	SignIn        *SignIn        // nil: people cannot sign in
	Organizations *Organizations
	Issued        *Issued
	Quotas        *Quotas
	Issuer        *issuer.Issuer                         // of identity tokens; nil: none are issued
	Rotation      *Rotation                              // nil: the authority does not change
	Backup        func(context.Context, io.Writer) error // nil: no backups are made
	Orders        *Orders
	Access        *Access
	Bus           BusUsers
	Presence      Presence
	Explainer     Explainer
	Health        *observe.Health // for /healthz and /readyz
	Metrics       *observe.Hub    // nil: none
	Version       string          // of this program
	CredentialTTL time.Duration   // life of certificates and bus tokens, one second at least
	PublicCA      bool            // the one port presents a certificate of a public CA: join strings need no pin
	Relays        []string        // connect URLs to tell parties; none: the one they used
	Audit         audit.Recorder  // nil: nothing is recorded
	Flood         audit.Recorder  // for refusals, of which there may be many; nil: nothing is recorded
	AuditLog      *auditLog       // nil: none is there to be read
	Log           *slog.Logger    // nil: none
	Now           func() time.Time
}

// API is the hub's HTTPS API: the token endpoint, and what administrators use.
// It is an http.Handler, safe for concurrent use.
type API struct {
	o        APIOptions
	mux      *router
	saving   sync.Mutex // held while a backup is made
	failures *failureLimiter
	table    []route
	slow     map[string]bool // patterns whose answers may take their time
	signIns  signIns
	pace     *issuer.Pace // of identity tokens
}

// route is a route of the API, and who may take it.
type route struct {
	pattern string
	need    role.Permission // empty: see known
	known   bool            // anybody whom the hub knows; otherwise everybody, or the handler decides
}

// NewAPI returns the API.
func NewAPI(o APIOptions) (*API, error) {
	if o.CredentialTTL < time.Second {
		return nil, errors.New("credentials have to live for a second at least")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Audit == nil {
		o.Audit = audit.Discard{}
	}
	if o.Flood == nil {
		o.Flood = audit.Discard{}
	}
	a := &API{o: o, mux: &router{}, failures: newFailureLimiter(), slow: make(map[string]bool), pace: issuer.NewPace()}
	a.routes()
	return a, nil
}

// router remembers its routes, so that a test can ask each one what it lets through.
type router struct {
	http.ServeMux
	patterns []string
}

// HandleFunc adds a route.
func (m *router) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	m.patterns = append(m.patterns, pattern)
	m.ServeMux.HandleFunc(pattern, h)
}

// Patterns returns the routes: a method and a path each, as http.ServeMux takes them.
func (a *API) Patterns() []string { return slices.Clone(a.mux.patterns) }

// handler does what a request asks and returns what to send as JSON, or nil for
// no content.
type handler = func(*http.Request) (any, error)

func (a *API) routes() {
	a.mux.HandleFunc("POST "+api.PathToken, a.token)
	a.mux.HandleFunc("GET "+api.PathCA, a.ca)
	a.mux.HandleFunc("GET "+api.PathHealth, a.o.Health.Handler().ServeHTTP)
	a.mux.HandleFunc("GET "+api.PathReady, a.ready)
	a.open("GET "+api.PathVersion, a.version)

	a.peopleRoutes()
	a.auditRoutes()
	a.known("GET "+api.PathOrganizations, a.listOrganizations)
	a.handle("POST "+api.PathOrganizations, role.Hub, a.createOrganization)
	a.handle("DELETE "+api.PathOrganizations+"/{org}", role.Hub, a.deleteOrganization)
	robots := api.PathOrganizations + "/{org}/robots"
	a.handle("GET "+robots, role.Read, a.listRobots)
	a.handle("POST "+robots, role.Administer, a.createRobot)
	a.handle("DELETE "+robots+"/{robot}", role.Administer, a.deleteRobot)
	a.handle("GET "+robots+"/{robot}/tokens", role.Read, a.listTokens)
	a.handle("POST "+robots+"/{robot}/tokens", role.Administer, a.createToken)
	a.handle("DELETE "+robots+"/{robot}/tokens/{token}", role.Administer, a.deleteToken)

	agents := api.PathOrganizations + "/{org}/agents"
	a.handle("GET "+agents, role.Read, a.listRegistrations)
	a.handle("POST "+agents, role.Operate, a.registerAgent)
	a.handle("GET "+agents+"/{agent}", role.Read, a.getRegistration)
	a.handle("DELETE "+agents+"/{agent}", role.Operate, a.unregisterAgent)
	a.handle("POST "+agents+"/{agent}/keys", role.Operate, a.addAgentKey)
	a.handle("DELETE "+agents+"/{agent}/keys/{key}", role.Operate, a.removeAgentKey)

	if a.o.Backup != nil {
		one := route{pattern: "GET " + api.PathBackup, need: role.Hub}
		a.table = append(a.table, one)
		a.mux.HandleFunc(one.pattern, a.backup)
	}
	if a.o.Rotation != nil {
		a.handle("GET "+api.PathAuthorities, role.Hub, a.listAuthorities)
		a.handle("POST "+api.PathAuthorities, role.Hub, a.rotateCA)
		a.handle("DELETE "+api.PathAuthorities+"/{pin}", role.Hub, a.retireCA)
	}
	a.joinRoutes()
	a.trustRoutes()
	a.revocationRoutes()

	a.accessRoutes()

	a.identityRoutes()

	a.limitRoutes(api.PathOrganizations + "/{org}/limits")

	a.open("GET "+api.PathAgents, a.listAgents)
	a.open("GET "+api.PathAgents+"/{id}", a.getAgent)
}

// open routes a pattern to a handler that checks by itself who asks.
func (a *API) open(pattern string, h handler) { a.route(route{pattern: pattern}, h) }

// known routes a pattern to a handler for all whom the hub knows, which tells each
// what is his.
func (a *API) known(pattern string, h handler) {
	a.route(route{pattern: pattern, known: true}, func(r *http.Request) (any, error) {
		c, err := a.caller(r)
		if err != nil {
			return nil, err
		}
		return h(withCaller(r, c))
	})
}

func (a *API) route(one route, h handler) {
	a.table = append(a.table, one)
	a.mux.HandleFunc(one.pattern, a.answer(h))
}

// handle routes a pattern to a handler for callers who hold a permission, in the
// organization that the path names as {org}.
func (a *API) handle(pattern string, need role.Permission, h handler) {
	a.route(route{pattern: pattern, need: need}, func(r *http.Request) (any, error) {
		noteOf(r).need = need
		c, err := a.permit(r, need)
		if err != nil {
			return nil, err
		}
		noteOf(r).held = true
		return h(withCaller(r, c))
	})
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	rec := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	defer func() { a.o.Metrics.Request(rec.status, time.Since(begin)) }()

	// A client that dawdles must not hold a request open for ever. The deadlines
	// are the connection's, so they go when the request does.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(begin.Add(readLimit)) // not supported by recorders in tests
	_ = control.SetWriteDeadline(begin.Add(handleLimit + writeLimit))
	defer func() {
		_ = control.Flush()
		_ = control.SetWriteDeadline(time.Time{})
	}()
	h, pattern := a.mux.Handler(r)
	limit := handleLimit
	if a.slow[pattern] {
		limit = auditFollow // it sets its own deadlines
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)

	rec.Header().Set("Cache-Control", "no-store") // answers hold secrets, or change
	rec.Header().Set("X-Content-Type-Options", "nosniff")
	if pattern == "" {
		a.unknown(rec, r, h)
		return
	}
	a.mux.ServeHTTP(rec, r)
}

// unknown answers for what no route matches, with the status that the mux would
// give.
func (a *API) unknown(w http.ResponseWriter, r *http.Request, h http.Handler) {
	probe := &statusWriter{ResponseWriter: discardWriter{http.Header{}}, status: http.StatusOK}
	h.ServeHTTP(probe, r)
	p := &api.Problem{Status: probe.status, Code: wire.CodeBadRequest.String(), Detail: "there is no such path: " + clip(r.URL.Path)}
	if allow := probe.Header().Get("Allow"); allow != "" {
		w.Header().Set("Allow", allow)
		p.Detail, p.Hint = r.Method+" is not possible here", "possible are: "+allow
	}
	api.WriteProblem(w, p)
}

// answer makes a handler of a function that returns what to send as JSON, or nil
// for no content, or an error.
func (a *API) answer(h func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r, n := withNote(r)
		body, err := h(r)
		a.recordRequest(r, n, body, err)
		switch {
		case err != nil:
			a.fail(w, r, err)
		case body == nil:
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodPost:
			api.WriteJSON(w, http.StatusCreated, api.TypeJSON, body)
		default:
			api.WriteJSON(w, http.StatusOK, api.TypeJSON, body)
		}
	}
}

// fail answers with the problem that an error is.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError {
		a.o.Log.Error("request failed", "method", r.Method, "path", clip(r.URL.Path), "error", err)
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
	}
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter/time.Second)))
	}
	api.WriteProblem(w, p)
}

// caller returns who makes a request. A failure counts against its source.
func (a *API) caller(r *http.Request) (Caller, error) {
	kind, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(kind, "Bearer") {
		token = ""
	}
	return a.authenticate(r, strings.TrimSpace(token))
}

// authenticate says whose a token is, and limits failures.
func (a *API) authenticate(r *http.Request, token string) (Caller, error) {
	p, err := a.o.Authenticator.Authenticate(r.Context(), token)
	if err == nil && p.Admin() {
		a.o.Log.Warn("the administrator's token was used", "method", r.Method, "path", clip(r.URL.Path), "source", sourceOf(r).String())
	}
	return a.limitFailures(r, p, err)
}

// limitFailures passes a failure to authenticate on, unless there were too many
// from where it comes.
func (a *API) limitFailures(r *http.Request, c Caller, err error) (Caller, error) {
	if err == nil {
		noteOf(r).caller = c
	}
	var f *wire.Failure
	if err == nil || !errors.As(err, &f) || f.Code != wire.CodeUnauthenticated {
		return c, err
	}
	source := sourceOf(r)
	if !a.failures.failed(source, a.o.Now()) {
		return Caller{}, &api.Problem{
			Status: http.StatusTooManyRequests, Code: wire.CodeOverloaded.String(), RetryAfter: failureEvery,
			Detail: "too many failed attempts from " + source.String(), Hint: "wait, then try with a good token; the last one failed because " + f.Text,
		}
	}
	a.o.Log.Warn("token refused", "path", clip(r.URL.Path), "source", source.String(), "reason", f.Text)
	return Caller{}, err
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController through.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// discardWriter is a ResponseWriter that keeps the header only.
type discardWriter struct{ header http.Header }

func (d discardWriter) Header() http.Header         { return d.header }
func (d discardWriter) Write(b []byte) (int, error) { return len(b), nil }
func (d discardWriter) WriteHeader(int)             {}

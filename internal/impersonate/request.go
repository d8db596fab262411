package impersonate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/copybuffer"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/kubeauth"
	"postern.dev/postern/internal/kubestatus"
	"postern.dev/postern/internal/kubeurl"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/wire"
)

const (
	// reviewPath is where the hub itself may ask whose a token is.
	reviewPath = "/apis/authentication.k8s.io/v1/tokenreviews"

	// cutTime is what the hub has to take the end of a request that was cut.
	cutTime = time.Second

	// refusedLog is how often the log tells of a hub's word that is not believed.
	refusedLog = time.Minute
)

// request is one on its way to the cluster.
type request struct {
	assertion.Claims
	who     policy.Asker
	as      assertion.Identity // whom the cluster is to see; nobody unless the mode says so
	service *service           // nil: the API server
	upgrade bool               // it asks for another protocol
	long    bool               // a watch or the like
	slow    *copybuffer.Answer // to it
	header  http.Header        // as it came
}

// requestKey is where a request's context holds its request.
type requestKey struct{}

func requestOf(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.handling.Add(1)
	defer s.handling.Done()
	a := &answer{ResponseWriter: w}
	defer func() { s.cfg.Metrics.Answered(a.status) }()
	// An answer may begin before the request's body has ended. Without this, what is left
	// of the body would be thrown away then.
	_ = http.NewResponseController(w).EnableFullDuplex()
	upgrade := isUpgrade(r)
	if s.draining.Load() && !upgrade {
		w.Header().Set("Connection", "close")
	}
	if err := s.serve(a, r, upgrade); err != nil {
		s.refuse(a, r, err)
	}
}

// serve answers a request, or says why not.
func (s *Server) serve(w *answer, r *http.Request, upgrade bool) error {
	q, err := s.believe(w, r)
	if err != nil {
		return err
	}
	q.upgrade = upgrade
	left, err := s.enter(q.Principal)
	if err != nil {
		return err
	}
	defer left()
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	visit := Visit{Who: q.who, Target: wire.Gateway(), Own: q.Mode == assertion.ModeSelf, Cut: func(f *wire.Failure) {
		cancel(f)
		w.cut(time.Now().Add(cutTime))
	}}
	if q.service != nil {
		visit.Target = q.service.target
	}
	leave, err := s.cfg.Judge.Admit(ctx, visit)
	if err != nil {
		return q.denied(err)
	}
	defer leave()
	if !q.As.IsZero() {
		if q.as, err = s.wishes.grant(ctx, q.Impersonate, q.As); err != nil {
			if cut, ok := context.Cause(ctx).(*wire.Failure); ok { //nolint:errorlint // it is the cause itself
				err = cut
			}
			return err
		}
	}
	s.carry(w, r.WithContext(context.WithValue(ctx, requestKey{}, q)), q)
	if q.slow != nil && q.slow.Follow(w, s.slow) != nil {
		panic(http.ErrAbortHandler) // so that the hub sees it
	}
	if _, cut := context.Cause(ctx).(*wire.Failure); cut && !w.told { //nolint:errorlint // it is the cause itself
		panic(http.ErrAbortHandler) // the connection has a deadline, and is good for nothing else
	}
	return nil
}

// carry sends a request on, and its answer back, but for the body of one that is slow.
func (s *Server) carry(w http.ResponseWriter, r *http.Request, q *request) {
	carrier := s.short
	if q.long = kubeurl.Describe(r.Method, r.RequestURI).Long(); q.long {
		carrier = s.long
	}
	carrier.ServeHTTP(w, r)
}

// believe reads the hub's word for a request.
func (s *Server) believe(w http.ResponseWriter, r *http.Request) (*request, error) {
	words := r.Header[assertion.Header]
	if len(words) != 1 {
		return nil, s.disbelieve(fmt.Errorf("there are %d, want one", len(words)))
	}
	bond, _ := r.Context().Value(bondKey{}).(*assertion.Bond)
	claims, answer, err := s.cfg.Verifier.VerifyOver(bond, words[0], r.Method, r.RequestURI, time.Now())
	if answer != "" {
		w.Header().Set(assertion.HeaderBond, answer)
	}
	if errors.Is(err, assertion.ErrBusy) {
		return nil, wire.Fail(wire.LegAgent, wire.CodeOverloaded, "the agent has served too many requests within a minute").WithCause(err)
	}
	if err != nil {
		return nil, s.disbelieve(err)
	}
	q := &request{Claims: claims, header: r.Header}
	switch {
	case !strings.HasPrefix(r.RequestURI, "/") || r.Method == http.MethodConnect:
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "want a path, and no tunnel")
	case claims.Mode == assertion.ModeSelf && (claims.Service != nil || !mayBeOwn(r.Method, r.RequestURI)):
		return nil, wire.Fail(wire.LegAgent, wire.CodeDenied, "the hub itself may ask for token reviews and read services only")
	case claims.Mode == assertion.ModePass && claims.Service != nil:
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "services do not get the caller's credentials")
	case claims.Mode == assertion.ModePass && !kubeauth.Shows(r.Header):
		return nil, wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the request has no credentials for the cluster")
	}
	principal, err := identity.ParsePrincipal(claims.Principal)
	if err != nil {
		return nil, wire.Fail(wire.LegAgent, wire.CodeBadRequest, "%v", err)
	}
	q.who = policy.Asker{Principal: principal, Groups: claims.Groups}
	if claims.Mode == assertion.ModeImpersonate {
		if err := vouched(claims.Impersonate); err != nil {
			return nil, err
		}
		q.as = claims.Impersonate
	}
	if claims.Service != nil {
		if q.service, err = newService(claims.Service, q.who); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// mayBeOwn reports whether the hub may ask this for itself: whose a token is, and which
// ports a service has.
func mayBeOwn(method, uri string) bool {
	if method == http.MethodPost {
		return uri == reviewPath
	}
	namespace, rest, _ := strings.Cut(strings.TrimPrefix(uri, "/api/v1/namespaces/"), "/")
	service, ok := strings.CutPrefix(rest, "services/")
	return method == http.MethodGet && ok && strings.HasPrefix(uri, "/api/v1/namespaces/") &&
		identity.ValidateName("namespace", namespace) == nil && identity.ValidateName("service", service) == nil
}

// disbelieve says what is wrong with the hub's word. It is not the caller's fault, nor
// are his credentials bad.
func (s *Server) disbelieve(err error) error {
	now := time.Now().UnixNano()
	if last := s.refused.Load(); now-last > int64(refusedLog) && s.refused.CompareAndSwap(last, now) {
		s.cfg.Log.Warn("a request through the gateway is refused; this is told once a minute at most", "error", err)
	}
	f := wire.Fail(wire.LegAgent, wire.CodeWrongPeer, "the agent does not believe the hub's word for this request: %v", err).WithCause(err)
	if errors.Is(err, assertion.ErrLate) || errors.Is(err, assertion.ErrEarly) {
		return f.WithHint("set the clocks of hub and agent")
	}
	return f
}

// denied words a refusal for what was asked.
func (q *request) denied(err error) error {
	f, ok := errors.AsType[*wire.Failure](err)
	if !ok || q.service == nil || f.Code != wire.CodeDenied {
		return err
	}
	g := *f
	g.Text = "service " + q.service.String() + " is not in the exposed services allowlist: " + f.Text
	return &g
}

// refuse answers a request that is not sent on.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	f := wire.AsFailure(err, wire.LegAgent)
	s.cfg.Log.Debug("gateway request refused", "method", r.Method, "path", r.URL.Path, "error", f)
	kubestatus.Of(f).Answer(w, r)
}

// rewrite makes of the hub's request the one that the cluster gets.
func (s *Server) rewrite(p *httputil.ProxyRequest) {
	q := requestOf(p.In.Context())
	kubeauth.Strip(p.Out.Header, q.Mode == assertion.ModePass)
	p.Out.Trailer = carryTrailer(p.In, p.Out)
	if q.service != nil {
		p.Out.URL, p.Out.Host = exactly(q.service.scheme, q.service.pool, p.In.RequestURI), q.service.address()
		return
	}
	p.Out.URL, p.Out.Host = exactly("https", s.api.host, p.In.RequestURI), s.api.host
	if q.Mode != assertion.ModePass {
		p.Out.Header.Set("Authorization", "Bearer "+s.api.token())
	}
	impersonate(p.Out.Header, q.as)
}

// modify looks at the cluster's answer. That the agent's own service account is not
// accepted is nothing that the caller could mend with other credentials.
func modify(r *http.Response) error {
	q := requestOf(r.Request.Context())
	if r.StatusCode == http.StatusUnauthorized && q.service == nil && q.Mode != assertion.ModePass {
		return wire.Fail(wire.LegTarget, wire.CodeUnauthenticated, "the API server does not accept the token of the agent's service account").
			WithHint("the agent's owner sees to --kubernetes-token-file, and that it is a token of this cluster")
	}
	if len(r.Trailer) > 0 { // which HTTP/2 may have behind a length, and HTTP/1.1 may not
		r.Header.Del("Content-Length")
	}
	if q.long && r.StatusCode != http.StatusSwitchingProtocols && r.Request.Body == nil {
		q.slow = copybuffer.Take(r, q.header)
	}
	return nil
}

// failed answers a request that got no answer from the cluster.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, err error) {
	q := requestOf(r.Context())
	if cut, ok := context.Cause(r.Context()).(*wire.Failure); ok { //nolint:errorlint // it is the cause itself
		if a, ok := w.(*answer); ok {
			a.told = true
		}
		w.Header().Set("Connection", "close") // it has a deadline
		s.refuse(w, r, cut)
		return
	}
	f := failure(err, q.service)
	if f.Leg == wire.LegTarget && f.Code == wire.CodeUnauthenticated {
		s.cfg.Log.Warn("the gateway does not work", "error", f)
		f.Code = wire.CodeProtocol // not 401: the caller's credentials are good
	}
	if r.Context().Err() == nil {
		s.cfg.Log.Debug("gateway request not answered", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	kubestatus.Of(wire.AsFailure(q.denied(f), wire.LegTarget)).Answer(w, r)
}

// isUpgrade reports whether a request asks for another protocol.
func isUpgrade(r *http.Request) bool {
	if r.Header.Get("Upgrade") == "" {
		return false
	}
	for _, v := range r.Header["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true
			}
		}
	}
	return false
}

// answer is the way back to the hub.
type answer struct {
	http.ResponseWriter
	status int
	told   bool // that the request was cut
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController through.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// cut ends the connection at a time, which frees whoever waits for it.
func (a *answer) cut(at time.Time) {
	control := http.NewResponseController(a.ResponseWriter)
	_ = control.SetReadDeadline(at)
	_ = control.SetWriteDeadline(at)
}

// service is a service of the cluster as a request asks for it.
type service struct {
	scheme, namespace, name string
	target                  wire.Target
	pool                    string // a host that stands for the service and who asks: connections are judged for one asker
}

func newService(s *assertion.Service, who policy.Asker) (*service, error) {
	port, err := strconv.ParseUint(s.Port, 10, 16)
	if err != nil || port == 0 {
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "service port %.20q is no number", s.Port)
	}
	if err := errors.Join(identity.ValidateName("namespace", s.Namespace), identity.ValidateName("service", s.Name)); err != nil {
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%v", err)
	}
	target, err := wire.TCP(s.Name+"."+s.Namespace+".svc", uint16(port))
	if err != nil {
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "%v", err)
	}
	h := sha256.New()
	for _, name := range append([]string{who.Principal.String()}, who.Groups...) {
		h.Write([]byte(name + "\x00"))
	}
	return &service{s.Scheme, s.Namespace, s.Name, target, hex.EncodeToString(h.Sum(nil)[:12]) + "." + target.Address()}, nil
}

// String returns NAMESPACE/NAME.
func (s *service) String() string { return s.namespace + "/" + s.name }

// address returns what stands in the Host field.
func (s *service) address() string {
	if s.scheme == "http" && s.target.Port == 80 || s.scheme == "https" && s.target.Port == 443 {
		return s.target.Host
	}
	return s.target.Address()
}

package hub

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/registry"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// maxSerial bounds a serial number in hexadecimal: RFC 5280 §4.1.2.2 has 20 bytes.
const maxSerial = 40

// tokenProblem returns an error of the token endpoint.
func tokenProblem(status int, code, detail, hint string) *api.Problem {
	return &api.Problem{Status: status, Code: code, Detail: detail, Hint: hint}
}

func invalidRequest(detail, hint string) *api.Problem {
	return tokenProblem(http.StatusBadRequest, api.ErrorInvalidRequest, detail, hint)
}

// token is the token endpoint: it exchanges a long-lived token for short-lived
// credentials (RFC 8693).
func (a *API) token(w http.ResponseWriter, r *http.Request) {
	r, n := withNote(r)
	form, err := readForm(r)
	var res any
	switch {
	case err != nil:
	case isSignIn(form):
		res, err = a.signIn(r, form)
	default:
		res, err = a.exchange(r, form)
	}
	a.o.Metrics.Exchanged(form.Get("role"), exchangeError(err))
	a.recordExchange(r, n, form, err)
	if err != nil {
		a.tokenFail(w, r, err)
		return
	}
	w.Header().Set("Pragma", "no-cache") // RFC 6749 §5.1 asks for it, beside Cache-Control
	api.WriteJSON(w, http.StatusOK, api.TypeJSON, res)
}

// exchangeError turns a problem into an error that metrics know the code of.
func exchangeError(err error) error {
	var p *api.Problem
	if !errors.As(err, &p) {
		return err
	}
	return exchangeFailure(p)
}

// exchangeFailure turns a problem into a failure with the code that fits its status.
func exchangeFailure(p *api.Problem) error {
	code := wire.CodeInternal
	switch {
	case p.Status == http.StatusForbidden:
		code = wire.CodeDenied
	case p.Status == http.StatusTooManyRequests:
		code = wire.CodeOverloaded
	case p.Status < http.StatusInternalServerError:
		code = wire.CodeBadRequest
	}
	return wire.Fail(wire.LegHub, code, "%s", p.Detail)
}

// tokenFail answers with an error in the form of RFC 6749 §5.2.
func (a *API) tokenFail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	code := p.Code
	switch {
	case p.Status == http.StatusUnauthorized:
		code = api.ErrorInvalidGrant
	case p.Status == http.StatusTooManyRequests:
		code = api.ErrorSlowDown
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter/time.Second)))
	case p.Status >= http.StatusInternalServerError:
		code = api.ErrorUnavailable
		a.o.Log.Error("credentials not issued", "source", sourceOf(r).String(), "error", err)
	case code == wire.CodeBadRequest.String():
		code = api.ErrorInvalidRequest
	}
	api.WriteJSON(w, p.Status, api.TypeJSON, api.TokenError{Code: code, Description: p.Detail, Hint: p.Hint, Leg: wire.LegHub.String()})
}

// readForm reads the parameters of a token request. A repeated one is an error,
// as RFC 6749 §3.2 wants it.
func readForm(r *http.Request) (url.Values, error) {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != api.TypeForm {
		return nil, invalidRequest("the body is not "+api.TypeForm, "")
	}
	if r.URL.RawQuery != "" {
		return nil, invalidRequest("parameters belong into the body", "a URL ends up in logs; consider a token that stood in it known")
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, api.BodyError(err)
	}
	form, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, invalidRequest("the body does not parse as a form", "") // the error would quote it
	}
	for name, values := range form {
		if len(values) > 1 {
			return form, invalidRequest("parameter "+clip(name)+" is given twice", "")
		}
	}
	return form, nil
}

// exchange checks a token request and issues the credentials.
func (a *API) exchange(r *http.Request, form url.Values) (*api.TokenResponse, error) {
	if form.Get("grant_type") != api.GrantTypeExchange {
		return nil, tokenProblem(http.StatusBadRequest, api.ErrorUnsupportedGrant, "only a token exchange is possible here", "want grant_type="+api.GrantTypeExchange)
	}
	if t := form.Get("requested_token_type"); t != "" && t != api.TokenTypeCredentials {
		return nil, invalidRequest("only credentials are issued here", "want requested_token_type="+api.TokenTypeCredentials)
	}
	if t := form.Get("subject_token_type"); t != api.TokenTypeJWT && t != api.TokenTypeAccess {
		return nil, invalidRequest("the subject token's type is missing or unknown", "want subject_token_type="+api.TokenTypeJWT)
	}
	caller, err := a.authenticateSubject(r, form)
	if err != nil {
		return nil, err
	}
	id, err := a.partyOf(r, form, caller)
	if err != nil {
		return nil, err
	}
	pub, err := identity.ParseRequest([]byte(form.Get("csr")))
	if err != nil {
		return nil, invalidRequest("the certificate request is not good: "+err.Error(), "")
	}
	busKey := form.Get("bus_key")
	if bus.ValidateUserKey(busKey) != nil {
		return nil, invalidRequest("the public key for the bus is not one", "")
	}
	if previous := form.Get("previous"); len(previous) > maxSerial || strings.Trim(previous, "0123456789abcdef") != "" {
		return nil, invalidRequest("the serial number of the previous certificate is not one", "")
	}
	now := a.o.Now()
	ttl := caller.limit(a.o.CredentialTTL, now)
	trust := a.o.State.Trust()
	chain, err := trust.Signing.IssueParty(id, pub, caller.Holder(), ttl, now)
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCertificates(chain)
	if err != nil {
		return nil, err
	}
	err = a.o.Issued.Issue(r.Context(), Issuance{
		Ground: caller.Ground(id.Organization), Serial: identity.Serial(certs[0]), Previous: form.Get("previous"),
		ID: id.String(), BusKey: busKey, Expires: certs[0].NotAfter, Authority: trust.Signing.Pin(), Generation: trust.Generation,
	})
	if errors.Is(err, registry.ErrRevoked) {
		return nil, wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the %s was revoked just now", caller.Ground(id.Organization))
	}
	if errors.Is(err, errBusKeyTaken) {
		return nil, tokenProblem(http.StatusForbidden, api.ErrorUnauthorized, "the public key for the bus is another party's", "make one of your own")
	}
	if err != nil {
		return nil, err
	}
	noteOf(r).what = "certificate " + identity.Serial(certs[0])
	if caller.Kind == identity.KindAgent {
		// Not before: once the list shows that a new key is used, the old one can go.
		if err := a.o.Registry.NoteAgentKeyUse(r.Context(), id.Organization, caller.Name, caller.Item); err != nil {
			return nil, err
		}
	}
	busToken, err := a.o.Bus.MintUser(id.Organization, busKey, id.Role, id.Name, id.Replica, ttl)
	if err != nil {
		return nil, err
	}
	a.o.Log.Info("credentials issued", "id", id.String(), "to", caller.String(), "item", caller.Item,
		"source", sourceOf(r).String(), "version", clip(form.Get("version")), "expires", now.Add(ttl))
	return &api.TokenResponse{
		AccessToken:     string(chain),
		IssuedTokenType: api.TokenTypeCredentials,
		TokenType:       "N_A",
		ExpiresIn:       int64(ttl / time.Second),
		CABundle:        string(trust.Bundle),
		BusToken:        busToken,
		TrustDomain:     id.TrustDomain,
		Item:            caller.Item,
		Configuration:   api.Configuration{HubVersion: a.o.Version, Relays: a.o.Relays, OrdersKeys: a.o.Orders.Keys()},
	}, nil
}

// authenticateSubject says who asks for credentials: the bearer of a token, or an
// agent that signed the request with its key, or a workload with a token of a trusted
// issuer. The type in the header of a JWT, and its issuer, tell them apart.
func (a *API) authenticateSubject(r *http.Request, form url.Values) (Caller, error) {
	token := form.Get("subject_token")
	if isWorkloadToken(token) {
		c, err := a.workload(r, form)
		return a.limitFailures(r, c, err)
	}
	if !identity.IsAssertion(token) {
		return a.authenticate(r, token)
	}
	p, err := a.o.Authenticator.Assert(r.Context(), token, api.RequestDigest(form))
	return a.limitFailures(r, p, err)
}

// partyOf returns the identity that a request asks for, if the caller may
// have it and it is not revoked. A robot may be any proxy of its organization, and any agent that has no
// keys of its own; an agent with a key only itself; a user any proxy of an
// organization in which the user has a role.
func (a *API) partyOf(r *http.Request, form url.Values, c Caller) (identity.ID, error) {
	id := identity.ID{
		TrustDomain: a.o.State.TrustDomain(), Organization: form.Get("audience"), Role: identity.Role(form.Get("role")),
		Name: form.Get("name"), Replica: form.Get("replica"),
	}
	if err := identity.ValidateName("organization", id.Organization); err != nil {
		return identity.ID{}, err
	}
	if c.Kind == identity.KindUser {
		if err := a.holds(r.Context(), c, id.Organization, role.Read); err != nil {
			return identity.ID{}, err
		}
	} else if !c.Admin() && id.Organization != c.Organization {
		what := "token"
		if c.Kind == identity.KindAgent {
			what = "key"
		}
		return identity.ID{}, tokenProblem(http.StatusForbidden, api.ErrorInvalidTarget,
			"the "+what+" is one of organization "+c.Organization+" and not of "+id.Organization,
			"pass --organization "+c.Organization+", or a "+what+" of organization "+id.Organization)
	}
	if c.Admin() {
		if _, err := a.o.Registry.Organization(r.Context(), id.Organization); errors.Is(err, registry.ErrNotFound) {
			return identity.ID{}, tokenProblem(http.StatusForbidden, api.ErrorInvalidTarget,
				"there is no organization "+id.Organization, "make it with: postern organization create "+id.Organization)
		} else if err != nil {
			return identity.ID{}, err
		}
	}
	what := "agent ID"
	switch id.Role {
	case identity.RoleAgent:
	case identity.RoleProxy:
		what = "proxy name"
	default:
		return identity.ID{}, invalidRequest("the role "+strconv.Quote(clip(string(id.Role)))+" cannot be had", "want role=agent or role=proxy")
	}
	if err := errors.Join(identity.ValidateName(what, id.Name), identity.ValidateName("replica", id.Replica)); err != nil {
		return id, err
	}
	if err := a.mayBe(r, c, id); err != nil {
		return id, err
	}
	// Last: whether a name is revoked is for those who may have it.
	return id, a.o.Registry.CheckParty(r.Context(), id.Organization, id.Role, id.Name)
}

// mayBe says whether a caller may have an identity of its organization.
func (a *API) mayBe(r *http.Request, c Caller, id identity.ID) error {
	switch {
	case id.Role == identity.RoleProxy && id.Name == ownProxy:
		return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized, "the proxy name "+ownProxy+" is that of the hub's own proxies", "choose another --name")
	case c.Admin():
		return nil
	case c.Kind == identity.KindUser:
		if id.Role != identity.RoleProxy {
			return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized, "a person's session enrols proxies only, and not "+string(id.Role)+" "+id.Name,
				"enrol agents with a robot token or a key of their own")
		}
		return nil
	case c.Kind == identity.KindWorkload:
		return a.mayBeWorkload(r.Context(), c, id)
	case c.Kind == identity.KindAgent:
		if id.Role != identity.RoleAgent || id.Name != c.Name {
			return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized,
				"a key of agent "+c.Name+" enrols that agent only, and not "+string(id.Role)+" "+id.Name, "")
		}
		return nil
	case id.Role != identity.RoleAgent:
		return nil
	}
	if trust, err := a.trustFor(r.Context(), id.Organization, id.Name); err != nil {
		return err
	} else if trust != "" {
		return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized,
			"agent "+id.Name+" of organization "+id.Organization+" is enrolled by the workload tokens of trust "+trust+"; a robot's token does not enrol it",
			"start it with --workload-token-file, or end the trust with: postern trust remove "+trust+" -a "+id.Organization)
	}
	_, err := a.o.Registry.Agent(r.Context(), id.Organization, id.Name)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return tokenProblem(http.StatusForbidden, api.ErrorUnauthorized,
		"agent "+id.Name+" of organization "+id.Organization+" is registered with keys; a robot's token does not enrol it",
		"start it with --private-key-file, or take its registration back with: postern agent unregister "+id.Name+" -a "+id.Organization)
}

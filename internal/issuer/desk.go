package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/controlplane"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/wire"
	"postern.dev/postern/internal/workload"
)

// Limits of failed attempts from one address: they keep the log readable, and a broken
// caller from keeping the issuer busy.
const (
	failureEvery = 6 * time.Second
	failureBurst = 10
)

// maxWorkloadLife bounds how long a caller's token may still be good: one that is good
// for a year is a secret that somebody stores.
const maxWorkloadLife = 24 * time.Hour

// caller is who may have tokens, and for which control planes.
type caller struct {
	name          string
	issuer        oidc.Issuer
	rules         []workload.Rule
	account       string
	controlPlanes []controlplane.Pattern
}

// newCallers makes callers of settings, and reads the files that these name.
func newCallers(all []config.IdentityCaller) ([]caller, error) {
	callers := make([]caller, 0, len(all))
	for _, one := range all {
		c := caller{name: one.Name, account: one.Account, issuer: oidc.Issuer{URL: one.Issuer, Audiences: one.Audiences}}
		var err error
		for name, into := range map[string]*[]byte{one.CAFile: &c.issuer.CA, one.JWKSFile: &c.issuer.Keys} {
			if name == "" {
				continue
			}
			if *into, err = os.ReadFile(name); err != nil {
				return nil, fmt.Errorf("caller %s: %w", one.Name, err)
			}
		}
		if c.rules, err = workload.ParseRules(one.Claims); err == nil {
			c.controlPlanes, err = controlplane.ParsePatterns(one.ControlPlanes)
		}
		if err == nil {
			err = c.issuer.Validate()
		}
		if err != nil {
			return nil, fmt.Errorf("caller %s: %w", one.Name, err)
		}
		callers = append(callers, c)
	}
	return callers, nil
}

// desk is where workloads ask for tokens. It is safe for concurrent use.
type desk struct {
	issuer   *Issuer
	callers  []caller
	verifier *oidc.Verifier
	pace     *Pace
	failures *Pace // by source address
	log      *slog.Logger
	now      func() time.Time
}

func newDesk(i *Issuer, callers []caller, v *oidc.Verifier, log *slog.Logger, now func() time.Time) *desk {
	return &desk{issuer: i, callers: callers, verifier: v, pace: NewPace(), failures: newPace(failureEvery, failureBurst), log: log, now: now}
}

// serve answers a request for a token.
func (d *desk) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	t, who, err := d.token(r.WithContext(ctx))
	if err != nil {
		d.refuse(w, r, who, err)
		return
	}
	// This is the record of who got what; never the token itself.
	d.log.Info("identity token issued", "caller", who, "subject", t.Subject, "audiences", t.Audiences, "id", t.ID, "source", r.RemoteAddr)
	api.WriteJSON(w, http.StatusCreated, api.TypeJSON, api.IdentityToken{
		Token: t.Value, Subject: t.Subject, Audiences: t.Audiences, ID: t.ID, IssuedAt: t.IssuedAt, Expires: t.Expires,
	})
}

// token makes the token that a request asks for, and says who asked as far as that is
// known.
func (d *desk) token(r *http.Request) (t Token, who string, err error) {
	able, subject, err := d.authenticate(r)
	if err != nil {
		return Token{}, "", err
	}
	who = able[0].name + "/" + subject
	var q api.CreateIdentityToken
	if err := api.ReadJSON(r, &q); err != nil {
		return Token{}, who, err
	}
	plane, err := controlplane.ParseRef(q.ControlPlane)
	if err != nil {
		return Token{}, who, wire.Fail(wire.LegHub, wire.CodeBadRequest, "%v", err)
	}
	account := r.PathValue("org")
	for _, c := range able {
		if c.account != account || !controlplane.Match(c.controlPlanes, plane) {
			continue
		}
		who = c.name + "/" + subject
		if wait := d.pace.Wait(who, d.now()); wait > 0 {
			return Token{}, who, &api.Problem{
				Status: http.StatusTooManyRequests, Code: wire.CodeOverloaded.String(), RetryAfter: max(wait.Round(time.Second), time.Second),
				Detail: who + " asks for identity tokens too often", Hint: "keep each token for half of its hour",
			}
		}
		t, err = d.issuer.Mint(Request{Account: account, ControlPlane: plane, Provider: q.Provider, Audiences: q.Audiences})
		return t, who, err
	}
	return Token{}, who, wire.Fail(wire.LegHub, wire.CodeDenied, "%s may not speak for control plane %s of %.100s", subject, plane, account).
		WithHint("if it is to, whoever runs the issuer says so in its settings, in callers")
}

// authenticate returns the entries of the settings that a request's token meets, of
// which there is one at least, and whose it is.
func (d *desk) authenticate(r *http.Request) (able []caller, subject string, err error) {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); !strings.EqualFold(kind, "Bearer") || token == "" {
		return nil, "", wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "no token was sent").
			WithHint("send the token of a workload that the issuer trusts, such as a projected service account token")
	}
	name := oidc.UnverifiedIssuer(token)
	failure := wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "tokens of issuer %.200q are not trusted here", name).
		WithHint("if they are to be, whoever runs the issuer says so in its settings, in callers")
	for _, c := range d.callers {
		if c.issuer.URL != name {
			continue
		}
		claims, err := d.verifier.Verify(r.Context(), c.issuer, token)
		if err != nil {
			failure = oidc.Failure(err, d.now())
			continue
		}
		if claims.Expires.After(d.now().Add(maxWorkloadLife + oidc.Leeway)) {
			failure = wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token is good until %s, which is too long for a workload's: at most %s",
				claims.Expires.Format(time.RFC3339), maxWorkloadLife).WithHint("have the platform make one that is good for an hour")
			continue
		}
		if rule := unmet(c.rules, claims.All()); rule != "" {
			failure = wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "the token of subject %.200q does not meet the rule %s of caller %s", claims.Subject, rule, c.name)
			continue
		}
		able, subject = append(able, c), claims.Subject
	}
	if len(able) == 0 {
		return nil, "", failure
	}
	return able, subject, nil
}

// unmet returns the first rule that claims do not meet, or "".
func unmet(rules []workload.Rule, claims map[string]any) string {
	for _, rule := range rules {
		if !rule.Match(claims) {
			return rule.String()
		}
	}
	return ""
}

// refuse answers with a problem. Failures to say who asks count against the source.
func (d *desk) refuse(w http.ResponseWriter, r *http.Request, who string, err error) {
	p := problemOf(err)
	switch {
	case p.Status == http.StatusUnauthorized:
		source := sourceOf(r)
		if wait := d.failures.Wait(source.String(), d.now()); wait > 0 {
			p = &api.Problem{
				Status: http.StatusTooManyRequests, Code: wire.CodeOverloaded.String(), RetryAfter: failureEvery,
				Detail: "too many failed attempts from " + source.String(), Hint: "wait, then try with a good token; the last one failed because " + p.Detail,
			}
			break
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
		d.log.Warn("token refused", "source", source.String(), "reason", p.Detail)
	case p.Status >= http.StatusInternalServerError:
		d.log.Error("request failed", "caller", who, "error", err)
	default:
		d.log.Warn("identity token refused", "caller", who, "source", r.RemoteAddr, "reason", p.Detail)
	}
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter/time.Second)))
	}
	api.WriteProblem(w, p)
}

// problemOf returns how an error is told.
func problemOf(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	f := wire.AsFailure(err, wire.LegHub)
	p := &api.Problem{Status: http.StatusInternalServerError, Detail: f.Text, Hint: f.Hint, Code: f.Code.String()}
	switch f.Code {
	case wire.CodeBadRequest:
		p.Status = http.StatusBadRequest
	case wire.CodeUnauthenticated:
		p.Status = http.StatusUnauthorized
	case wire.CodeDenied:
		p.Status = http.StatusForbidden
	case wire.CodeOverloaded:
		p.Status = http.StatusServiceUnavailable
	default:
		p.Detail, p.Hint = "the issuer failed", "see its log"
	}
	return p
}

// sourceOf returns what counts as one source of requests: an IPv4 address, or an IPv6
// network of 64 bits.
func sourceOf(r *http.Request) netip.Prefix {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, _ := netip.ParseAddr(host)
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	p, _ := addr.Prefix(bits) // an invalid address gives the invalid prefix, which is one source too
	return p
}

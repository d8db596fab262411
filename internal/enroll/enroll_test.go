package enroll_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func TestStart(t *testing.T) {
	hub := newFakeHub(t, time.Hour)
	s := enroll.New(hub, request(), nil)
	if s.Grant() != nil || s.Credentials() != nil {
		t.Error("credentials before the start")
	}
	var told *enroll.Grant
	s.OnRenew(func(g *enroll.Grant) { told = g })
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := s.Grant()
	if told != g || g.BusToken != "bus:UPUBLIC" || string(g.BusKey) != "seed" || s.Credentials() != g.Credentials {
		t.Errorf("grant: %+v", g)
	}
	if want := "spiffe://hub.test/org/acme/agent/edge/r1"; g.Credentials.ID.String() != want {
		t.Errorf("ID %s, want %s", g.Credentials.ID, want)
	}
	form := hub.forms[0]
	for k, want := range map[string]string{
		"grant_type": api.GrantTypeExchange, "subject_token": token, "subject_token_type": api.TokenTypeJWT, "audience": "acme",
		"requested_token_type": api.TokenTypeCredentials, "bus_key": "UPUBLIC", "version": "test",
	} {
		if form[k] != want {
			t.Errorf("%s = %q, want %q", k, form[k], want)
		}
	}
}

func TestStartFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		status    int
		code      string
		leg       wire.Leg
		want      wire.Code
		permanent bool
	}{
		"bad token":  {401, api.ErrorInvalidGrant, wire.LegHub, wire.CodeUnauthenticated, true},
		"wrong org":  {403, api.ErrorInvalidTarget, wire.LegHub, wire.CodeDenied, true},
		"bad name":   {400, api.ErrorInvalidRequest, wire.LegHub, wire.CodeBadRequest, true},
		"too many":   {429, api.ErrorSlowDown, wire.LegHub, wire.CodeOverloaded, false},
		"hub broken": {500, "", wire.LegHub, wire.CodeInternal, false},
		"hub starts": {503, api.ErrorUnavailable, wire.LegHub, wire.CodeOverloaded, false},
		"no hub":     {0, "", wire.LegHub, wire.CodeLost, false},
	} {
		hub := newFakeHub(t, time.Hour)
		hub.fail = func() (int, string) { return tc.status, tc.code }
		err := enroll.New(hub, request(), nil).Start(t.Context())
		var f *wire.Failure
		if !errors.As(err, &f) || f.Leg != tc.leg || f.Code != tc.want || enroll.Permanent(err) != tc.permanent {
			t.Errorf("%s: %v (permanent: %v)", name, err, enroll.Permanent(err))
		}
		if strings.Contains(err.Error(), token) {
			t.Errorf("%s: error holds the token", name)
		}
	}
}

func TestPermanentTLS(t *testing.T) {
	wrong := wire.Fail(wire.LegTLS, wire.CodeWrongPeer, "unknown authority")
	if !enroll.Permanent(wrong) {
		t.Error("an unknown authority should be permanent")
	}
	if enroll.Permanent(wrong.WithCause(x509.CertificateInvalidError{Reason: x509.Expired})) {
		t.Error("an expired hub certificate should not be permanent")
	}
	if enroll.Permanent(context.Canceled) || enroll.Permanent(nil) {
		t.Error("only failures are permanent")
	}
}

func TestBadAnswers(t *testing.T) {
	other, err := identity.NewAuthority("hub.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, alter := range map[string]func(*api.TokenResponse){
		"no certificate": func(r *api.TokenResponse) { r.AccessToken = "" },
		"other CA":       func(r *api.TokenResponse) { r.CABundle = string(other.CertificatePEM()) },
		"CA as leaf":     func(r *api.TokenResponse) { r.AccessToken = r.CABundle },
		"no bus token":   func(r *api.TokenResponse) { r.BusToken = "" },
		"no life":        func(r *api.TokenResponse) { r.ExpiresIn = 0 },
		"long life":      func(r *api.TokenResponse) { r.ExpiresIn = 1 << 40 },
	} {
		hub := newFakeHub(t, time.Hour)
		hub.alter = alter
		s := enroll.New(hub, request(), nil)
		var f *wire.Failure
		if err := s.Start(t.Context()); !errors.As(err, &f) || f.Code != wire.CodeProtocol || s.Grant() != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnswerForAnotherParty(t *testing.T) {
	hub := newFakeHub(t, time.Hour)
	req := request()
	s := enroll.New(renamer{hub}, req, nil)
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "not for") {
		t.Errorf("error %v", err)
	}
}

// renamer is a hub that certifies somebody else.
type renamer struct{ *fakeHub }

func (r renamer) HTTPClient() *http.Client { return &http.Client{Transport: r} }

func (r renamer) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.ParseForm(); err != nil {
		return nil, err
	}
	req.PostForm.Set("name", "other")
	return r.fakeHub.RoundTrip(req)
}

func TestClocks(t *testing.T) {
	for name, tc := range map[string]struct {
		ahead time.Duration // the hub's
		fail  bool          // the hub refuses the token
		want  string
	}{
		"hub far ahead":  {ahead: time.Hour, want: "is 1h0m0s behind the hub's"},
		"hub far behind": {ahead: -2 * time.Hour, want: "is 2h0m0s ahead of the hub's"},
		"refused":        {ahead: time.Hour, fail: true, want: "is 1h0m0s behind the hub's"},
		"refused, clocks right": {
			ahead: 20 * time.Second, fail: true, want: "no: invalid_grant (do something)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newFakeHub(t, time.Hour)
				hub.ahead = tc.ahead
				if tc.fail {
					hub.fail = func() (int, string) { return 401, api.ErrorInvalidGrant }
				}
				err := enroll.New(hub, request(), nil).Start(t.Context())
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want one with %q", err, tc.want)
				}
				var clock *enroll.ClockError
				if far := tc.ahead.Abs() > time.Minute; errors.As(err, &clock) != far || enroll.Permanent(err) == far {
					t.Errorf("clock error %v, permanent %v", clock, enroll.Permanent(err))
				}
			})
		})
	}
}

func TestClockWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newFakeHub(t, time.Hour)
		hub.ahead = -5 * time.Minute // certificates of the hub are valid here all the same
		var log logBuffer
		s := enroll.New(hub, request(), logger(&log))
		for range 3 {
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "clocks differ"); n != 1 || !strings.Contains(log.String(), "5m0s ahead") {
			t.Errorf("warned %d times:\n%s", n, log.String())
		}
	})
}

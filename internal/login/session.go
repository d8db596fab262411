package login

import (
	"context"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// renewTime bounds the renewal of a session.
const renewTime = 30 * time.Second

// Session is a person's session at the hub of a context. It renews itself as far as
// the identity provider lets it, so that it serves a command as well as a forward
// that runs for days. It is a Secret of package enroll, and safe for concurrent use.
type Session struct {
	Store   *Store
	Context string
	Getenv  func(string) string
	Now     func() time.Time // nil: time.Now
}

func (s *Session) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// SubjectToken returns the token to show to the hub, and its type as RFC 8693 §3
// names it. Half way through its life it is renewed.
func (s *Session) SubjectToken(ctx context.Context) (token, tokenType string, err error) {
	t, err := s.Tokens(ctx)
	return t.Session, api.TokenTypeJWT, err
}

// Tokens returns the tokens of the session, renewed like SubjectToken's.
func (s *Session) Tokens(ctx context.Context) (Tokens, error) {
	t, ok, err := s.Store.Tokens(s.Context)
	if err == nil && !ok {
		err = ended(s.Context, "there is no session")
	}
	if err == nil && s.due(t) {
		ctx, cancel := context.WithTimeout(ctx, renewTime)
		defer cancel()
		t, err = s.renew(ctx)
	}
	return t, err
}

// due reports whether half of a token's life is over.
func (s *Session) due(t Tokens) bool {
	return s.now().After(t.Issued.Add(t.Expires.Sub(t.Issued) / 2))
}

// renew renews the session, alone: a refresh token is often good once.
func (s *Session) renew(ctx context.Context) (t Tokens, err error) {
	lockErr := s.Store.locked(ctx, func() error {
		var ok bool
		if t, ok, err = s.Store.Tokens(s.Context); err != nil || !ok || !s.due(t) {
			if err == nil && !ok {
				err = ended(s.Context, "the session was ended meanwhile")
			}
			return err // or another process was quicker
		}
		t, err = s.renewed(ctx, t)
		return err
	})
	if err == nil {
		err = lockErr
	}
	return t, err
}

// renewed renews tokens; the store is locked. While they are good, trouble at the
// provider is no error.
func (s *Session) renewed(ctx context.Context, t Tokens) (Tokens, error) {
	good := s.now().Before(t.Expires)
	if t.Refresh == "" {
		if good {
			return t, nil
		}
		return t, ended(s.Context, "the session ended at %s, and the identity provider does not renew it", t.Expires.Local().Format(time.DateTime))
	}
	all, err := s.Store.Contexts()
	if err != nil {
		return t, err
	}
	where, err := all.Find(s.Context)
	if err != nil {
		return t, err
	}
	if where.Hub != t.Hub {
		return t, ended(s.Context, "the session is for %s, and the context is now for %s", t.Hub, where.Hub)
	}
	p, err := NewProvider(ctx, api.SignIn{Issuer: t.Issuer, ClientID: t.ClientID, CA: t.IssuerCA}, s.Getenv)
	if err == nil {
		defer p.Close()
		var proof *Proof
		var denied bool
		proof, denied, err = p.Renew(ctx, t.Refresh, t.Nonce)
		if denied {
			t.Refresh = ""
			if saveErr := s.Store.putTokens(s.Context, &t); saveErr != nil {
				return t, saveErr
			}
		}
		if err == nil {
			// Kept before it is used: the old one may be void already.
			if proof.Refresh != "" {
				t.Refresh = proof.Refresh
			}
			if err := s.Store.putTokens(s.Context, &t); err != nil {
				return t, err
			}
			var fresh Tokens
			if fresh, err = s.exchange(ctx, *where, t, *proof); err == nil {
				return fresh, s.Store.putTokens(s.Context, &fresh)
			}
			// What the hub refuses is final, whatever the clock says.
			if code := wire.AsFailure(err, wire.LegHub).Code; code == wire.CodeUnauthenticated || code == wire.CodeDenied {
				return t, err
			}
		}
	}
	if good {
		return t, nil
	}
	return t, err
}

// exchange shows an ID token to the hub to renew a session.
func (s *Session) exchange(ctx context.Context, where Context, t Tokens, proof Proof) (Tokens, error) {
	d, err := Dial(where, s.Getenv)
	if err != nil {
		return t, err
	}
	defer d.CloseIdle()
	return exchange(ctx, &api.Client{BaseURL: d.BaseURL(), HTTP: d.HTTPClient()}, t, proof, s.now)
}

// Dial returns a way to the hub of a context.
func Dial(where Context, getenv func(string) string) (*uplink.Dialer, error) {
	return uplink.New(uplink.Config{
		ConnectURL: where.Hub, CAFile: where.CAFile, CAPin: where.CAPin, ProxyURL: where.ProxyURL, ProxyCAFile: where.ProxyCAFile, Getenv: getenv,
	})
}

// exchange shows an ID token to a hub. The session that t is of is renewed.
func exchange(ctx context.Context, hub *api.Client, t Tokens, proof Proof, now func() time.Time) (Tokens, error) {
	sent := now()
	got, err := hub.OpenSession(ctx, api.SessionRequest{IDToken: proof.IDToken, NonceSecret: proof.Nonce, Session: t.ID, Client: clientName()})
	if err != nil {
		return t, err
	}
	t.Session, t.ID, t.Issued, t.Expires = got.AccessToken, got.SessionID, sent, sent.Add(time.Duration(got.ExpiresIn)*time.Second)
	t.Nonce = proof.Nonce
	if proof.Refresh != "" {
		t.Refresh = proof.Refresh
	}
	return t, nil
}

// Begin shows what a sign-in at the provider gave to the hub, and returns the tokens
// of the session.
func Begin(ctx context.Context, hub *api.Client, info api.SignIn, hubURL string, proof Proof) (Tokens, error) {
	return exchange(ctx, hub, Tokens{Issuer: info.Issuer, IssuerCA: info.CA, ClientID: info.ClientID, Hub: hubURL}, proof, time.Now)
}

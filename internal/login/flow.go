package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/oidc"
	"postern.dev/postern/internal/wire"
)

// browserTime is how long somebody may take to sign in with a browser.
const browserTime = 5 * time.Minute

// Provider is the identity provider of a hub, as a public client of it sees it.
type Provider struct {
	info     api.SignIn
	metadata oidc.Metadata
	client   *http.Client
}

// NewProvider finds out how to sign in with the provider that a hub names. The
// caller closes it.
func NewProvider(ctx context.Context, info api.SignIn, getenv func(string) string) (*Provider, error) {
	if info.Issuer == "" {
		return nil, wire.Fail(wire.LegHub, wire.CodeDenied, "people cannot sign in at this hub").
			WithHint("use a token: --token-file; the hub's administrator sets up signing in with --oidc-issuer-url")
	}
	issuer := oidc.Issuer{URL: info.Issuer, CA: []byte(info.CA)}
	verifier := oidc.NewVerifier(oidc.Options{Getenv: getenv})
	defer verifier.Close()
	m, err := verifier.Discover(ctx, issuer)
	if err != nil {
		return nil, providerFailure(err)
	}
	client, err := oidc.NewHTTPClient(issuer, getenv)
	if err != nil {
		return nil, providerFailure(err)
	}
	return &Provider{info: info, metadata: m, client: client}, nil
}

// Close gives connections back.
func (p *Provider) Close() { p.client.CloseIdleConnections() }

// HasDevice reports whether the provider knows device codes.
func (p *Provider) HasDevice() bool { return p.metadata.DeviceAuthorizationEndpoint != "" }

// Proof is what a sign-in at the provider gave.
type Proof struct {
	IDToken string
	Nonce   string // the secret of api.NonceOf; empty without one
	Refresh string // empty if the provider gave none
}

func (p *Provider) config(redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.info.ClientID, RedirectURL: redirect, Scopes: p.scopes(),
		Endpoint: oauth2.Endpoint{
			AuthURL: p.metadata.AuthorizationEndpoint, TokenURL: p.metadata.TokenEndpoint,
			DeviceAuthURL: p.metadata.DeviceAuthorizationEndpoint, AuthStyle: oauth2.AuthStyleInParams,
		},
	}
}

// scopes returns what to ask for: what the hub names, without what the provider does
// not know.
func (p *Provider) scopes() []string {
	known := p.metadata.ScopesSupported
	return slices.DeleteFunc(slices.Clone(p.info.Scopes), func(s string) bool {
		optional := slices.Contains([]string{"email", "profile", "groups", "offline_access"}, s)
		return optional && len(known) > 0 && !slices.Contains(known, s)
	})
}

func (p *Provider) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, oauth2.HTTPClient, p.client)
}

// answer is what the browser brought back.
type answer struct {
	code string
	err  error
}

// Browser signs in with a browser on this machine: authorization code with PKCE and
// a redirect to loopback (RFC 8252 §7.3). show is called with the address to open.
func (p *Provider) Browser(ctx context.Context, show func(url string)) (*Proof, error) {
	if p.metadata.AuthorizationEndpoint == "" || p.metadata.TokenEndpoint == "" {
		return nil, providerFailure(errors.New("the provider has no authorization endpoint"))
	}
	ctx, cancel := context.WithTimeout(ctx, browserTime)
	defer cancel()
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, wire.Fail(wire.LegClient, wire.CodeInternal, "the browser has nowhere to come back to: %s", err).WithCause(err).
			WithHint("sign in with a device code: postern login --device")
	}
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	answers := make(chan answer, 1)
	server := &http.Server{
		Handler: p.callback(state, answers), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }()
	defer func() {
		// The page that says that it is done has to get through.
		past, end := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer end()
		_ = server.Shutdown(past)
		_ = server.Close()
		<-served
	}()
	cfg := p.config("http://" + ln.Addr().String() + "/callback")
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", api.NonceOf(nonce))}
	if slices.Contains(cfg.Scopes, "offline_access") {
		options = append(options, oauth2.SetAuthURLParam("prompt", "consent")) // OpenID Connect Core 1.0 §11
	}
	show(cfg.AuthCodeURL(state, options...))
	var got answer
	select {
	case got = <-answers:
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, wire.Fail(wire.LegClient, wire.CodeTimeout, "nobody signed in within %s", browserTime).
				WithHint("try again; where there is no browser use: postern login --device")
		}
		return nil, ctx.Err()
	}
	if got.err != nil {
		return nil, got.err
	}
	token, err := cfg.Exchange(p.context(ctx), got.code, oauth2.VerifierOption(verifier))
	if err != nil {
		return nil, providerFailure(err)
	}
	return proofOf(token, nonce)
}

// callback takes the answer that has our state; one suffices.
func (p *Provider) callback(state string, answers chan<- answer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Referrer-Policy", "no-referrer")
		if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			page(w, http.StatusBadRequest, "This is not the sign-in that postern waits for.")
			return
		}
		var got answer
		switch iss := q.Get("iss"); {
		case iss != "" && iss != p.info.Issuer: // RFC 9207
			got.err = wire.Fail(wire.LegClient, wire.CodeDenied, "the answer came from another provider, %.100q", iss)
		case q.Get("error") != "":
			got.err = providerFailure(&oauth2.RetrieveError{ErrorCode: q.Get("error"), ErrorDescription: q.Get("error_description")})
		case q.Get("code") == "":
			got.err = providerFailure(errors.New("it sent no code"))
		default:
			got.code = q.Get("code")
		}
		select {
		case answers <- got:
		default: // a second one
		}
		if got.err != nil {
			page(w, http.StatusOK, "You are not signed in: "+got.err.Error())
			return
		}
		page(w, http.StatusOK, "Signed in. You can close this page and go back to the terminal.")
	})
	return mux
}

// page answers a person's browser.
func page(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Postern</title>"+
		"<body style=\"font: 1.2rem sans-serif; margin: 4rem auto; max-width: 40rem\"><h1>Postern</h1><p>%s</p></body></html>\n", html.EscapeString(text))
}

// Device signs in with a browser on any machine: a device code (RFC 8628). show is
// called with what to tell the person.
func (p *Provider) Device(ctx context.Context, show func(uri, complete, code string, expires time.Time)) (*Proof, error) {
	if !p.HasDevice() {
		return nil, wire.Fail(wire.LegClient, wire.CodeBadRequest, "the identity provider knows no device codes").
			WithHint("sign in on a machine with a browser, or open the address there: postern login --no-browser")
	}
	cfg := p.config("")
	code, err := cfg.DeviceAuth(p.context(ctx))
	if err != nil {
		return nil, providerFailure(err)
	}
	show(code.VerificationURI, code.VerificationURIComplete, code.UserCode, code.Expiry)
	token, err := cfg.DeviceAccessToken(p.context(ctx), code)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, wire.Fail(wire.LegClient, wire.CodeTimeout, "nobody entered the code in time").WithHint("try again")
	}
	if err != nil {
		return nil, providerFailure(err)
	}
	return proofOf(token, "")
}

// Renew gets a new ID token with a refresh token. Its Proof has the refresh token to
// use from now on. denied tells that the provider will not give another one.
func (p *Provider) Renew(ctx context.Context, refresh, nonce string) (proof *Proof, denied bool, err error) {
	token, err := p.config("").TokenSource(p.context(ctx), &oauth2.Token{RefreshToken: refresh}).Token()
	if err != nil {
		var answered *oauth2.RetrieveError
		denied := errors.As(err, &answered) && answered.Response != nil && answered.Response.StatusCode < http.StatusInternalServerError &&
			answered.Response.StatusCode != http.StatusTooManyRequests
		return nil, denied, providerFailure(err)
	}
	proof, err = proofOf(token, nonce)
	return proof, err != nil, err
}

// Revoke has the provider forget a refresh token (RFC 7009), as far as it can.
func (p *Provider) Revoke(ctx context.Context, refresh string) {
	if p.metadata.RevocationEndpoint == "" || refresh == "" {
		return
	}
	form := url.Values{"token": {refresh}, "token_type_hint": {"refresh_token"}, "client_id": {p.info.ClientID}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.metadata.RevocationEndpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if res, err := p.client.Do(req); err == nil {
		_ = res.Body.Close()
	}
}

func proofOf(t *oauth2.Token, nonce string) (*Proof, error) {
	id, _ := t.Extra("id_token").(string)
	if id == "" {
		return nil, providerFailure(errors.New("it sent no ID token"))
	}
	return &Proof{IDToken: id, Nonce: nonce, Refresh: t.RefreshToken}, nil
}

// providerFailure words what went wrong at the identity provider. No token is in it.
func providerFailure(err error) error {
	f := wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the identity provider: %s", err).WithCause(err)
	answered, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		f.Code = wire.CodeUnreachable
		f.Hint = "check that this machine reaches the provider, and the settings of the hub: --oidc-issuer-url, --oidc-client-id"
		return f
	}
	switch answered.ErrorCode {
	case "access_denied":
		f.Code, f.Text = wire.CodeDenied, "the sign-in was denied"
	case "expired_token":
		f.Code, f.Text, f.Hint = wire.CodeTimeout, "the code has expired before anybody entered it", "try again"
	case "invalid_grant":
		f.Text, f.Hint = "the identity provider does not let the session go on", "sign in again: postern login"
	case "":
		f.Text = "the identity provider answered with an error"
		if answered.Response != nil {
			f.Text += ": " + answered.Response.Status
		}
		return f
	default:
		f.Text = "the identity provider refused: " + answered.ErrorCode
		f.Hint = "check the client at the provider: it has to be public, with the grants and redirect URIs of the guide on signing in"
	}
	if answered.ErrorDescription != "" {
		f.Text += fmt.Sprintf(" (%.200s)", strings.Map(visible, answered.ErrorDescription))
	}
	return f
}

// visible drops what could disturb a terminal.
func visible(r rune) rune {
	if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return -1
	}
	return r
}

package presence

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/wire"
)

// Bounds of asking a hub's own proxy.
const (
	frontTimeout = 3 * time.Second
	frontPause   = 5 * time.Second // after it has not answered
)

// Front is a hub's own proxy, as its clients reach it. It is safe for concurrent use.
type Front struct {
	address string
	client  *http.Client
	now     func() time.Time

	mu    sync.Mutex
	until time.Time
	err   *wire.Failure // of the last failure
}

// NewFront returns the proxy at HOST:PORT.
func NewFront(address string) *Front {
	way := &http.Transport{DialContext: (&net.Dialer{Timeout: frontTimeout}).DialContext, DisableKeepAlives: true}
	return &Front{address: address, client: &http.Client{Transport: way, Timeout: frontTimeout, CheckRedirect: stay}, now: time.Now}
}

func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Takes asks the proxy whether a user's password is good. Nothing is opened by that. It takes three
// seconds at most. Errors are *wire.Failure: CodeUnauthenticated if the password is not good, CodeProtocol
// if what is there is no proxy of Postern; with others nobody can tell, and it is not asked again for
// some seconds.
func (f *Front) Takes(ctx context.Context, user, password string) error {
	f.mu.Lock()
	if f.err != nil && f.now().Before(f.until) {
		defer f.mu.Unlock()
		return f.err
	}
	f.mu.Unlock()
	failure := f.ask(ctx, user, password)
	if failure != nil && (failure.Code == wire.CodeUnauthenticated || ctx.Err() != nil) {
		return failure
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.until = failure, f.now().Add(frontPause)
	if failure != nil {
		return failure
	}
	return nil
}

// ask sends "OPTIONS *", which is to the proxy itself.
func (f *Front) ask(ctx context.Context, user, password string) *wire.Failure {
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, "http://"+f.address, http.NoBody)
	if err != nil {
		return wire.Fail(wire.LegProxy, wire.CodeBadRequest, "%q is not HOST:PORT", f.address).WithCause(err)
	}
	req.URL.Opaque = "*"
	login := http.Request{Header: make(http.Header)}
	login.SetBasicAuth(user, password)
	req.Header.Set("Proxy-Authorization", login.Header.Get("Authorization"))
	res, err := f.client.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err // without method and URL, which mean nothing to people
		}
		return wire.Fail(wire.LegProxy, wire.CodeUnreachable, "%v", err).WithCause(err)
	}
	_ = res.Body.Close()
	status := res.Header.Get("Proxy-Status")
	switch {
	case status != "postern" && !strings.HasPrefix(status, "postern;"):
		return wire.Fail(wire.LegProxy, wire.CodeProtocol, "what answers there, with status %d, is no proxy of Postern", res.StatusCode)
	case res.StatusCode == http.StatusProxyAuthRequired:
		return wire.Fail(wire.LegClient, wire.CodeUnauthenticated, "the proxy does not take the password")
	case res.StatusCode != http.StatusNoContent:
		return wire.Fail(wire.LegProxy, wire.CodeOverloaded, "the proxy answers with status %d", res.StatusCode)
	}
	return nil
}

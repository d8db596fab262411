package hub

import (
	"context"
	"log/slog"
	"testing"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/policy"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// openerFunc is a proxy.Opener.
type openerFunc func() (proxy.Stream, error)

func (f openerFunc) Open(context.Context, proxy.Request) (proxy.Stream, error) { return f() }

// cutStream is a stream that remembers why it was reset.
type cutStream struct {
	proxy.Stream
	why *wire.Failure
}

func (s *cutStream) Reset(f *wire.Failure) { s.why = f }

// TestAccessThatEndsWhileAStreamOpens: a stream is judged again only when something has
// changed since it was asked for; then it is cut.
func TestAccessThatEndsWhileAStreamOpens(t *testing.T) {
	t.Parallel()
	a := NewAccess(nil, func(string) {}, slog.New(slog.DiscardHandler), nil)
	ann := policy.Asker{Principal: identity.Principal{Kind: identity.KindUser, Name: "ann"}}
	grants := []access.Grant{{ID: "a", To: policy.Whom{Kind: identity.KindUser, Name: "ann"}, Agent: access.Selector{All: true}, Targets: access.Everything()}}
	one := &orgAccess{set: access.New(grants), live: make(map[liveUse]struct{})}
	a.all["acme"] = one
	to := proxy.Request{Agent: proxy.AgentRef{Agent: "edge", Organization: "acme"}, Target: wire.Target{Kind: wire.KindTCP, Host: "db", Port: 1}}
	open := func(meanwhile func()) (*cutStream, error) {
		s := new(cutStream)
		_, err := a.open(t.Context(), "acme", ann, to, openerFunc(func() (proxy.Stream, error) { meanwhile(); return s, nil }))
		return s, err
	}
	if s, err := open(func() {}); err != nil || s.why != nil || len(one.live) != 1 {
		t.Errorf("it is cut by %v, %v; %d live", s.why, err, len(one.live))
	}
	if s, err := open(func() { a.took("acme", one) }); err != nil || s.why != nil || len(one.live) != 2 {
		t.Errorf("after a change that allows it: it is cut by %v, %v; %d live", s.why, err, len(one.live))
	}
	s, err := open(func() { a.replace(one, nil, 0); a.took("acme", one) })
	if err != nil || s.why == nil || s.why.Code != wire.CodeDenied || len(one.live) != 0 {
		t.Errorf("after its grant is gone: it is cut by %v, %v; %d live", s.why, err, len(one.live))
	}
	if _, err := open(func() { t.Error("it is opened") }); err == nil {
		t.Error("it is not refused")
	}
}

package attack_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern.dev/postern/internal/agent"
	"postern.dev/postern/internal/assertion"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/orders"
	"postern.dev/postern/internal/proxy"
	"postern.dev/postern/internal/wire"
)

// TestAttackGatewayOfAnAgent comes to the agent's end of the gateway as another than the
// hub: a proxy of the organization that may reach everything, whatever it is called, with
// and without a word that it has signed itself.
func TestAttackGatewayOfAnAgent(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(api.Close)
	account := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(account, []byte("agents-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := config.DefaultAgent()
	settings.Party, settings.Gateway = w.party(acme, "r1", w.url()), true
	settings.Allow = []string{"tcp:127.0.0.1:*"}
	settings.Kubernetes = config.Kubernetes{API: strings.Replace(api.URL, "http://", "https://", 1), TokenFile: account}
	a, err := agent.New(settings, agent.Options{Version: "test", Getenv: noEnv, Log: w.log.With("part", "agent")})
	if err != nil {
		t.Fatal(err)
	}
	w.run(a.Run)

	mine := serve(t, echo("acme"))
	near := w.enrol(acme, identity.RoleProxy, "near", "p1")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	conn := w.conn(near)
	t.Cleanup(conn.Close)
	d, err := proxy.NewDialer(ctx, proxy.DialerConfig{
		Organization: acme, Bus: conn, Credentials: func() *identity.Credentials { return near.Credentials },
		Join: func(ctx context.Context, ticket wire.Ticket) (net.Conn, error) { return w.join(ctx, near, ticket) },
		Log:  w.log.With("part", "thief"),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.run(d.Run)
	open := func(target wire.Target, early []byte) (proxy.Stream, error) {
		return d.Open(ctx, proxy.Request{Agent: proxy.AgentRef{Organization: acme, Agent: agentID}, Target: target, Early: early})
	}
	allowed, err := wire.TCP("127.0.0.1", uint16(mine.port()))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // so that what is refused is refused for what it is
		s, err := open(allowed, nil)
		if err == nil {
			_ = s.Close()
		}
		return err
	})

	seed, err := orders.NewSeed()
	if err != nil {
		t.Fatal(err)
	}
	key, err := orders.ParseSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := assertion.NewSigner(key.Private())
	if err != nil {
		t.Fatal(err)
	}
	word, err := signer.Sign(assertion.Claims{
		Organization: acme, Agent: agentID, Method: http.MethodGet, URI: "/api", Mode: assertion.ModeImpersonate, Principal: "user:ann",
		Impersonate: assertion.Identity{User: "ann"}, IssuedAt: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	request := "GET /api HTTP/1.1\r\nHost: gateway\r\n" + assertion.Header + ": " + word + "\r\n\r\n"
	for name, early := range map[string][]byte{"a word of its own": []byte(request), "nothing": nil} {
		s, err := open(wire.Gateway(), early)
		if f := wire.AsFailure(err, wire.LegUnknown); err == nil || f.Leg != wire.LegPolicy || f.Code != wire.CodeDenied || !strings.Contains(f.Text, "for the hub alone") {
			t.Errorf("%s: %v", name, err)
		}
		if s != nil {
			_, _ = io.WriteString(s, request)
			answer, _ := io.ReadAll(s)
			t.Errorf("%s: it got in, and was answered %.200q", name, answer)
			_ = s.Close()
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the cluster was asked %d times", n)
	}
}

package attack_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func (w *world) speaker(g *enroll.Grant) *speaker {
	w.t.Helper()
	s, err := w.speak(g, &g.Credentials.Certificate)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// TestAttackBusSubjects says and asks for everything that is another's: of the other
// organization, of other parties of the same, and of the server itself.
func TestAttackBusSubjects(t *testing.T) {
	w := newWorld(t)
	// The victim's parties listen to what is theirs.
	agent, near := w.enrol(acme, identity.RoleAgent, agentID, "r1"), w.enrol(acme, identity.RoleProxy, "near", "p1")
	agentEars, proxyEars := w.speaker(agent), w.speaker(near)
	for s, subjects := range map[*speaker][]string{
		agentEars: {"meet.edge.r1", "presence.ask", "_INBOX_" + public(agent) + ".>"},
		proxyEars: {"presence.agent.*.*", "_INBOX_" + public(near) + ".>"},
	} {
		for i, subject := range subjects {
			if forbidden, err := s.try("SUB %s %d", subject, i+1); forbidden || err != nil {
				t.Fatalf("a party may not listen to %s: %v", subject, err)
			}
		}
	}
	// And they hear it.
	for s, subject := range map[*speaker]string{agentEars: "presence.agent.edge.r1", proxyEars: "meet.edge.r1"} {
		if forbidden, err := s.try("PUB %s 2\r\n{}", subject); forbidden || err != nil {
			t.Fatalf("a party may not publish to %s: %v", subject, err)
		}
	}
	hear := func() {
		t.Helper()
		for _, s := range []*speaker{agentEars, proxyEars} {
			if err := s.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, func() error {
		hear()
		if len(agentEars.heard) == 0 || len(proxyEars.heard) == 0 {
			return fmt.Errorf("heard %v and %v", agentEars.heard, proxyEars.heard)
		}
		return nil
	})
	agentEars.heard, proxyEars.heard = nil, nil

	stolen := []string{
		">", "*", "*.*", "*.*.*", "*.>", "meet.>", "meet.*.*", "meet.edge.*", "meet.edge.>", "presence.>", "presence.*", "presence.agent.>",
		"_INBOX_>", "_INBOX_*.>", "_INBOX_" + public(agent) + ".>", "_INBOX_" + public(near) + ".>", "_INBOX.>", "_R_.>", "_GR_.>",
		"$SYS.>", "$SYS.REQ.>", "$SYS.ACCOUNT.>", "$SYS._INBOX.>", "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$KV.>", "$KV.registry.>", "$KV.grants.>",
		"$O.>", "$NRG.>", "$LDS.>", "$MQTT.>", "$SRV.>", "acme.>", "hub.>", "events.>", "audit.>", "revoked.>", "revoked.ask.*",
	}
	spoken := []string{
		"presence.agent.edge.r2", "presence.agent.plant.r1", "presence.ask.x", "_INBOX_" + public(agent) + ".1", "_INBOX_" + public(near) + ".1",
		"$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.CLAIMS.UPDATE",
		"$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.ACCOUNT.X.CLAIMS.UPDATE", "$SYS.ACCOUNT.X.CONNECT", "$SYS.REQ.SERVER.X.SHUTDOWN",
		"$SYS.REQ.SERVER.X.KICK", "$SYS.REQ.SERVER.X.RELOAD", "$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.CREATE.evil",
		"$JS.API.STREAM.MSG.GET.KV_registry", "$JS.API.DIRECT.GET.KV_registry.$KV.registry.organization.acme", "$JS.ACK.x", "$KV.registry.organization.acme",
		"$KV.grants.x", "$JSC.CI.x", "_R_.x", "acme.meet.edge.r1", "audit.x", "events.x", "revoked.ask.plant",
	}
	for _, attacker := range []struct {
		name             string
		role             identity.Role
		org, id, replica string
		publish, listen  []string // beside those that nobody may
	}{
		{"an agent of another organization", identity.RoleAgent, evil, agentID, "r1", []string{"meet.edge.r1", "presence.ask"}, []string{"meet.edge.r2", "presence.agent.edge.r1"}},
		{"a proxy of another organization", identity.RoleProxy, evil, "near", "p1", []string{"presence.agent.edge.r1"}, []string{"meet.edge.r1", "presence.ask"}},
		{"another agent of the same", identity.RoleAgent, acme, "plant", "r1", []string{"meet.edge.r1", "presence.ask", "presence.agent.edge.r1"}, []string{"meet.edge.r1", "presence.agent.edge.r1"}},
		{"another replica of the same", identity.RoleAgent, acme, agentID, "r9", []string{"meet.edge.r1", "presence.agent.edge.r1"}, []string{"meet.edge.r1", "presence.agent.edge.r1"}},
		{"another proxy of the same", identity.RoleProxy, acme, "far", "p1", []string{"presence.agent.edge.r1", "revoked.ask.near"}, []string{"meet.edge.r1", "presence.ask", "revoked.ask.near"}},
	} {
		t.Run(attacker.name, func(t *testing.T) {
			mallory := w.enrol(attacker.org, attacker.role, attacker.id, attacker.replica)
			s := w.speaker(mallory)
			sid := 0
			for _, subject := range append(stolen, attacker.listen...) {
				if attacker.role == identity.RoleProxy && (subject == "presence.agent.edge.r1") {
					continue
				}
				sid++
				for _, verb := range []string{"SUB %s %d", "SUB %s group %d"} {
					forbidden, err := s.try(verb, subject, sid)
					if err != nil {
						t.Fatalf("%s: %v", subject, err)
					}
					if !forbidden {
						t.Errorf("it may listen to %s", subject)
					}
				}
			}
			for _, subject := range append(spoken, attacker.publish...) {
				if strings.HasPrefix(subject, "presence.agent."+attacker.id+"."+attacker.replica) && attacker.role == identity.RoleAgent {
					continue
				}
				for _, verb := range []string{
					"PUB %s 2\r\n{}", "PUB %s _INBOX_" + public(mallory) + ".1 2\r\n{}", "HPUB %s 12 14\r\nNATS/1.0\r\n\r\n{}",
				} {
					forbidden, err := s.try(verb, subject)
					if err != nil {
						t.Fatalf("%s: %v", subject, err)
					}
					if !forbidden {
						t.Errorf("it may publish to %s", subject)
					}
				}
			}
			// A trace of a message that it may send, to where it may not speak.
			allowed := "presence.agent." + attacker.id + "." + attacker.replica
			if attacker.role == identity.RoleProxy {
				allowed = "meet.plant.r1"
			}
			header := "NATS/1.0\r\nNats-Trace-Dest: presence.agent.edge.r7\r\n\r\n"
			if _, err := s.try("HPUB %s %d %d\r\n%s{}", allowed, len(header), len(header)+2, header); err != nil {
				t.Fatal(err)
			}
		})
	}
	hear()
	for _, heard := range append(agentEars.heard, proxyEars.heard...) {
		if heard != "presence.agent.plant.r1" && heard != "presence.agent.edge.r9" { // which spoke for themselves
			t.Errorf("the victim heard something on %s", heard)
		}
	}
}

// TestAttackBusLogins comes with tokens that are another's, or nobody's.
func TestAttackBusLogins(t *testing.T) {
	w := newWorld(t)
	victim, mallory := w.enrol(acme, identity.RoleProxy, "near", "p1"), w.enrol(evil, identity.RoleProxy, "near", "p1")
	if err := w.speaker(victim).flush(); err != nil {
		t.Fatal(err)
	}
	ours := seedKey(mallory.BusKey)
	claims := func(g *enroll.Grant) map[string]any {
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(g.BusToken, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]any{}
		if err := json.Unmarshal(payload, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	forged := func(issuer ed25519.PrivateKey, change func(m map[string]any)) string {
		m := claims(mallory)
		change(m)
		return jwt(issuer, m)
	}
	_, account, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, operator, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Signed by the account's key, which only the hub has, the same forgery is good.
	seed, err := os.ReadFile(filepath.Join(w.dir, "keys", "account-"+evil))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := w.dialBus(&mallory.Credentials.Certificate); err != nil {
		t.Fatal(err)
	} else if err := s.login(forged(seedKey(seed), func(map[string]any) {}), ours, nil); err != nil {
		t.Fatal("the forger does not know the trade:", err)
	}
	acmeAccount := claims(victim)["iss"]
	signed := strings.Split(victim.BusToken, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"none"}`))
	accountJWT := jwt(operator, map[string]any{
		"jti": "x", "iat": time.Now().Unix(), "iss": nkey(prefixOperator, operator), "sub": nkey(prefixAccount, account), "name": "ours",
		"nats": map[string]any{"type": "account", "version": 2, "limits": map[string]any{"conn": -1, "subs": -1, "data": -1, "payload": -1}},
	})
	for name, attempt := range map[string]struct {
		token string
		key   ed25519.PrivateKey
		more  map[string]any
	}{
		"the victim's token with our key":     {victim.BusToken, ours, nil},
		"the victim's token without a key":    {victim.BusToken, nil, nil},
		"the victim's name with our key":      {forged(ours, func(m map[string]any) { m["sub"] = claims(victim)["sub"] }), ours, nil},
		"signed by our user key":              {forged(ours, func(map[string]any) {}), ours, nil},
		"signed by an account of our own":     {forged(account, func(m map[string]any) { m["iss"] = nkey(prefixAccount, account) }), ours, nil},
		"said to be of the victim's account":  {forged(account, func(m map[string]any) { m["iss"] = acmeAccount }), ours, nil},
		"by way of the victim's account":      {forged(account, func(m map[string]any) { m["nats"].(map[string]any)["issuer_account"] = acmeAccount }), ours, nil},
		"no signature":                        {none + "." + signed[1] + ".", ours, nil},
		"an account's token":                  {accountJWT, account, nil},
		"no token":                            {"", ours, nil},
		"a bare key":                          {"", ours, map[string]any{"nkey": nkey(prefixUser, ours)}},
		"a user and a password":               {"", nil, map[string]any{"user": "hub", "pass": "hub"}},
		"the system's account by name":        {"", nil, map[string]any{"user": "system", "pass": "", "account": "system"}},
		"our token for the victim's account":  {mallory.BusToken, ours, map[string]any{"account": acmeAccount}},
		"our token for a new account":         {mallory.BusToken, ours, map[string]any{"account": "x", "new_account": true}},
		"our token with the nonce of another": {mallory.BusToken, nil, map[string]any{"sig": base64.RawURLEncoding.EncodeToString(ed25519.Sign(ours, []byte("AAAAAAAAAAAAAAA")))}},
		"a token of the API":                  {w.tokens[acme].Token, ours, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := w.dialBus(&mallory.Credentials.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.login(attempt.token, attempt.key, attempt.more); err == nil {
				t.Error("it is let in")
			}
		})
	}
	t.Run("speaking before the login", func(t *testing.T) {
		s, err := w.dialBus(&mallory.Credentials.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.try("SUB > 1"); err == nil && len(s.errs) == 0 {
			t.Error("it is listened to")
		}
	})
	t.Run("other protocols", func(t *testing.T) {
		for _, first := range []string{
			"RS+ > \r\n", "LS+ >\r\n", "A+ X\r\n", "RMSG $G > 0\r\n\r\n", "LMSG > 0\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
			"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04evil", "INFO {\"server_id\":\"x\"}\r\n",
		} {
			s, err := w.dialBus(&mallory.Credentials.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write([]byte(first)); err != nil {
				t.Fatal(err)
			}
			if s.flush() == nil && len(s.errs) == 0 {
				t.Errorf("%q is understood", first)
			}
		}
	})
	t.Run("a second login", func(t *testing.T) {
		s := w.speaker(mallory)
		if err := s.login(victim.BusToken, ours, nil); err == nil {
			t.Error("it becomes the victim")
		}
	})
	if err := w.speaker(mallory).flush(); err != nil {
		t.Errorf("its own login: %v", err)
	}
}

// TestAttackPresence announces agents that are none of the attacker's, and looks at
// what the victim's proxies and the hub believe.
func TestAttackPresence(t *testing.T) {
	w := newWorld(t)
	mine := serve(t, echo("acme"))
	w.agent(acme, w.url(), "tcp:127.0.0.1:*")
	near := w.proxy(acme)
	eventually(t, func() error { _, err := visit(near.http, mine.addr); return err })

	presence := fmt.Sprintf(`{"epoch":"zz","state":"stopped","started":%q,"since":%q}`, time.Now().Add(time.Hour).Format(time.RFC3339), time.Now().Format(time.RFC3339))
	for _, g := range []*enroll.Grant{
		w.enrol(evil, identity.RoleAgent, agentID, "r1"), // the same names in its own organization
		w.enrol(acme, identity.RoleAgent, "plant", "r1"),
		w.enrol(acme, identity.RoleProxy, "far", "p1"),
	} {
		s := w.speaker(g)
		for _, subject := range []string{"presence.agent.edge.r1", "presence.agent.edge.r2", "presence.agent.edge.r1.x", "presence.agent..r1"} {
			_, _ = s.try("PUB %s %d\r\n%s", subject, len(presence), presence)
		}
	}
	for range 5 {
		if name, err := visit(near.http, mine.addr); err != nil || name != "acme" {
			t.Errorf("the victim reaches %q, %v", name, err)
		}
	}
	agents, err := w.admin.Agents(t.Context(), acme)
	if err != nil || len(agents) != 1 || agents[0].ID != agentID || len(agents[0].Replicas) != 1 || agents[0].Replicas[0].State != "ready" {
		t.Errorf("the hub knows of %+v, %v", agents, err)
	}
	theirs, err := w.admin.Agents(t.Context(), evil)
	if err != nil || len(theirs) != 1 || theirs[0].Replicas[0].State != "stopped" {
		t.Errorf("of the attacker's own it knows %+v, %v: the attack did not run", theirs, err)
	}
}

// TestAttackMeetings has a proxy of the attacker ask for agents of the victim, and an
// agent of the same ID in the attacker's organization wait for the victim's proxies.
func TestAttackMeetings(t *testing.T) {
	w := newWorld(t)
	ask := func(org string) error {
		conn := w.conn(w.enrol(org, identity.RoleProxy, "near", "p1"))
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return conn.Meet(ctx, agentID, "r1", bus.MeetRequest{
			Tickets: []wire.Ticket{wire.NewTicket("")}, Proxy: "spiffe://" + w.info.TrustDomain + "/org/acme/proxy/near/p1", Expires: 2 * time.Second,
		})
	}
	serving := w.conn(w.enrol(acme, identity.RoleAgent, agentID, "r1"))
	defer serving.Close()
	served := make(chan bus.MeetRequest, 16)
	stop, err := serving.ServeMeet(agentID, "r1", "e1", func(r bus.MeetRequest) error { served <- r; return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	eventually(t, func() error { return ask(acme) })
	for len(served) > 0 {
		<-served
	}
	if err := ask(evil); err == nil || wire.AsFailure(err, wire.LegUnknown).Code != wire.CodeNoAgent {
		t.Errorf("a proxy of another organization asks: %v; want that there is no such agent", err)
	}
	// An agent of the same ID elsewhere takes nothing that is meant for the victim's.
	thief := w.conn(w.enrol(evil, identity.RoleAgent, agentID, "r1"))
	defer thief.Close()
	stolen := make(chan struct{}, 16)
	stopThief, err := thief.ServeMeet(agentID, "r1", "e1", func(bus.MeetRequest) error { stolen <- struct{}{}; return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer stopThief()
	if _, err := thief.RTT(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if err := ask(acme); err != nil {
			t.Error(err)
		}
	}
	if len(stolen) != 0 || len(served) != 8 {
		t.Errorf("%d requests of 8 were served, %d stolen", len(served), len(stolen))
	}
}

// conn connects to the bus as parties do.
func (w *world) conn(g *enroll.Grant) *bus.Conn {
	w.t.Helper()
	c, err := bus.Connect(w.t.Context(), bus.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			conn, err := w.uplink.DialTLS(ctx, wire.ALPNBus, func() *tls.Certificate { return &g.Credentials.Certificate })
			if err != nil {
				return nil, err // not a nil *tls.Conn in an interface
			}
			return conn, nil
		},
		Token: func() string { return g.BusToken }, Seed: func() []byte { return g.BusKey }, Name: "test",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

func TestMeetCodec(t *testing.T) {
	want := MeetRequest{
		Relay: "tls://relay.example:4222", Proxy: "spiffe://x/org/o/proxy/p/r",
		Tickets: []wire.Ticket{wire.NewTicket("one"), wire.NewTicket("")}, Expires: 5 * time.Second,
	}
	data, err := encodeMeet(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMeet(data)
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	newer := bytes.Replace(data, []byte("{"), []byte(`{"new_thing":{"a":[1]},`), 1)
	if got, err := decodeMeet(newer); err != nil || !cmp.Equal(got, want) {
		t.Errorf("a newer peer's request: %v", err)
	}
	for name, r := range map[string]MeetRequest{
		"no tickets":   {Expires: time.Second},
		"many tickets": {Expires: time.Second, Tickets: make([]wire.Ticket, MaxTickets+1)},
		"no life":      {Tickets: want.Tickets},
		"long life":    {Tickets: want.Tickets, Expires: time.Hour},
		"long relay":   {Tickets: want.Tickets, Expires: time.Second, Relay: strings.Repeat("a", 9999)},
		"long proxy":   {Tickets: want.Tickets, Expires: time.Second, Proxy: strings.Repeat("a", 9999)},
	} {
		if _, err := encodeMeet(r); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	for _, s := range []string{"", "{}", "null", "[]", `{"tickets":["x"],"expires_ms":1}`, `{"tickets":[null],"expires_ms":-1}`,
		strings.Repeat(" ", maxMessage) + "{}"} {
		if _, err := decodeMeet([]byte(s)); err == nil {
			t.Errorf("decoded %.40q", s)
		}
	}
}

func TestReplyCodec(t *testing.T) {
	if err := decodeReply(encodeReply(nil)); err != nil {
		t.Errorf("yes: %v", err)
	}
	f := wire.Fail(wire.LegPolicy, wire.CodeDenied, "no: %s", strings.Repeat("é", 2000)).WithHint("ask")
	got := wire.AsFailure(decodeReply(encodeReply(f)), wire.LegUnknown)
	if got.Leg != wire.LegPolicy || got.Code != wire.CodeDenied || got.Hint != "ask" || len(got.Text) > maxText {
		t.Errorf("no: %+v", got)
	}
	got = wire.AsFailure(decodeReply(encodeReply(fs.ErrExist)), wire.LegUnknown)
	if got.Leg != wire.LegAgent || got.Code != wire.CodeInternal {
		t.Errorf("plain error: %+v", got)
	}
	for _, s := range []string{"", "{}", "x", `{"ok":false}`} {
		if f := wire.AsFailure(decodeReply([]byte(s)), wire.LegUnknown); f == nil || f.Code != wire.CodeProtocol {
			t.Errorf("%q: %v", s, f)
		}
	}
	if f := wire.AsFailure(decodeReply([]byte(`{"failure":{}}`)), wire.LegUnknown); f == nil || f.Code != wire.CodeInternal {
		t.Errorf("failure without a code: %v", f)
	}
}

func samplePresence() Presence {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return Presence{
		Agent: "a", Replica: "r", Epoch: "e1", Version: "v1", Zone: "z", State: StateReady, Address: "192.0.2.1", Started: now, Since: now,
		Streams: 2, Pipes: 3, BytesIn: 4, BytesOut: 5, RTT: time.Millisecond, LastError: "x", LastErrorAt: now, Allow: []string{"kubernetes"},
		Policy: &PolicyStatus{Rules: 2, Version: "0123456789ab", Since: now, Error: "policy.yaml:3: no", ErrorAt: now},
	}
}

func TestPresenceCodec(t *testing.T) {
	want := samplePresence()
	data, err := encodePresence(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodePresence(presenceSubject("a", "r"), data)
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v\n%s", err, cmp.Diff(want, got))
	}
	want.Allow = make([]string, 500)
	for i := range want.Allow {
		want.Allow[i] = strings.Repeat("ü", 400)
	}
	want.LastError = strings.Repeat("ü", 4000)
	if data, err = encodePresence(want); err != nil || len(data) > maxMessage {
		t.Errorf("a long presence has %d bytes, %v", len(data), err)
	}
	if _, err := decodePresence(presenceSubject("a", "r"), data); err != nil {
		t.Errorf("a long presence: %v", err)
	}
	good, _ := encodePresence(samplePresence())
	for _, subject := range []string{"", "presence.agent.a", "presence.agent.a.b.c", "presence.agent.A.b", "presence.proxy.a.b", "presence.agent..b"} {
		if _, err := decodePresence(subject, good); err == nil {
			t.Errorf("subject %q is taken", subject)
		}
	}
	for _, s := range []string{"", "{}", `{"state":"ready"}`, `{"state":"lost","epoch":"x"}`, `{"state":"ready","epoch":"x","started":"20260-01-01T00:00:00Z"}`} {
		if _, err := decodePresence(presenceSubject("a", "r"), []byte(s)); err == nil {
			t.Errorf("decoded %q", s)
		}
	}
	bad := samplePresence()
	bad.Agent = "*"
	if _, err := encodePresence(bad); err == nil {
		t.Error("a wildcard as agent is taken")
	}
}

func TestRightsOf(t *testing.T) {
	key, seed, err := NewUserKey()
	if err != nil || len(seed) == 0 {
		t.Fatal(err)
	}
	if r, err := RightsOf(identity.RoleAgent, "a", "r", key); err != nil || !cmp.Equal(r.Publish, []string{"presence.agent.a.r", "audit.agent.a.r", "orders.ask.a.r"}) || !r.Reply {
		t.Errorf("agent: %+v, %v", r, err)
	}
	if r, err := RightsOf(identity.RoleProxy, "p", "r", key); err != nil || !cmp.Equal(r.Publish, []string{"meet.*.*", "presence.ask", "revoked.ask.p"}) || r.Reply {
		t.Errorf("proxy: %+v, %v", r, err)
	}
	for _, role := range []identity.Role{identity.RoleAgent, identity.RoleProxy, "x"} {
		if _, err := RightsOf(role, "a.b", "r", key); err == nil {
			t.Errorf("%s: bad name is taken", role)
		}
	}
}

func FuzzDecodeMeet(f *testing.F) {
	good, _ := encodeMeet(MeetRequest{Tickets: make([]wire.Ticket, 2), Expires: time.Second})
	f.Add(good)
	f.Add([]byte(`{"tickets":null,"expires_ms":1e300}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeMeet(data)
		if err != nil {
			return
		}
		again, err := encodeMeet(r)
		if err != nil {
			t.Fatalf("decoded, but not encoded again: %v", err)
		}
		if r2, err := decodeMeet(again); err != nil || !cmp.Equal(r, r2) {
			t.Fatalf("%v %s", err, cmp.Diff(r, r2))
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	f.Add(encodeReply(nil))
	f.Add(encodeReply(wire.Fail(wire.LegTCP, wire.CodeRefused, "x")))
	f.Fuzz(func(t *testing.T, data []byte) {
		var fail *wire.Failure
		if err := decodeReply(data); err != nil && (!errors.As(err, &fail) || fail.Code == wire.CodeNone || len(fail.Text) > maxText) {
			t.Fatalf("%#v", err)
		}
	})
}

func FuzzDecodePresence(f *testing.F) {
	good, _ := encodePresence(samplePresence())
	f.Add("presence.agent.a.r", good)
	f.Add("presence.agent.a.r", []byte(`{"epoch":"x","state":"ready","streams":-1,"rtt_ns":-5,"allow":["a"]}`))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		p, err := decodePresence(subject, data)
		if err != nil {
			return
		}
		again, err := encodePresence(p)
		if err != nil || !json.Valid(again) || len(again) > 2*maxMessage {
			t.Fatalf("decoded %+v, encoded to %d bytes: %v", p, len(again), err)
		}
	})
}

func TestRevokedCodec(t *testing.T) {
	asked := []Credential{{"robot", "ci", "one"}, {"robot", "ci", "two"}}
	for s, want := range map[string][]Credential{
		`{"revoked":[]}`: {}, `{"new":1}`: {}, `{"revoked":[1]}`: {asked[1]}, `{"revoked":[0,1]}`: asked,
		"": nil, `[]`: nil, `{"revoked":[2]}`: nil, `{"revoked":[-1]}`: nil, `{"revoked":[0,0,0]}`: nil, `{"revoked":["0"]}`: nil,
		`{"revoked":[],"failure":{"leg":"hub","code":"internal"}}`: nil, strings.Repeat(" ", maxMessage) + "{}": nil,
	} {
		got, err := decodeRevokedAnswer([]byte(s), asked)
		if (err != nil) != (want == nil) || err == nil && !cmp.Equal(got, want) {
			t.Errorf("%.60q: %v, %v; want %v", s, got, err, want)
		}
	}
}

func FuzzDecodeRevoked(f *testing.F) {
	f.Add([]byte(`{"credentials":[{"kind":"robot","name":"ci","item":"one"}],"more":1}`), []byte(`{"revoked":[0]}`))
	f.Add([]byte(`{"credentials":null}`), []byte(`{"revoked":[-1,1e9]}`))
	f.Fuzz(func(t *testing.T, question, answer []byte) {
		asked, err := decodeRevokedQuestion(question)
		if err != nil {
			return
		}
		if len(asked) == 0 || len(asked) > MaxCredentials {
			t.Fatalf("%d credentials", len(asked))
		}
		if gone, err := decodeRevokedAnswer(answer, asked); err == nil && len(gone) > len(asked) {
			t.Fatalf("%d of %d were revoked", len(gone), len(asked))
		}
	})
}

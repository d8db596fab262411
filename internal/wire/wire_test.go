package wire

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := FrameType(rapid.IntRange(int(FrameOpen), int(FramePong)).Draw(t, "type"))
		low := 0
		if typ == FrameData {
			low = 1
		}
		want := Header{
			Type: typ, Flags: rapid.Uint8().Draw(t, "flags"), Offset: rapid.Uint64().Draw(t, "offset"),
			Length: rapid.IntRange(low, max(low, maxLen[typ])).Draw(t, "length"),
		}
		var b [HeaderLen]byte
		want.Put(b[:])
		got, err := ParseHeader(b[:])
		if err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestHeaderRefuses(t *testing.T) {
	valid := Append(nil, FrameData, 0, 7, []byte("x"))
	for name, change := range map[string]func([]byte){
		"type 0":        func(b []byte) { b[0] = 0 },
		"unknown type":  func(b []byte) { b[0] = 11 },
		"reserved":      func(b []byte) { b[3] = 1 },
		"too long":      func(b []byte) { b[4] = 1 },
		"empty DATA":    func(b []byte) { b[7] = 0 },
		"PING with any": func(b []byte) { b[0] = byte(FramePing) },
	} {
		b := bytes.Clone(valid)
		change(b)
		if h, err := ParseHeader(b); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: got %+v, %v", name, h, err)
		}
	}
}

func TestFullDataFrameFillsWholeRecords(t *testing.T) {
	if MaxFrameLen%(16<<10) != 0 || MaxPayloadLen+HeaderLen != MaxFrameLen {
		t.Errorf("a full frame of %d bytes does not fill TLS records of 16 KiB", MaxFrameLen)
	}
}

func TestOpenRoundTrip(t *testing.T) {
	want := Open{Stream: StreamID{1, 2, 3}, LimitMillis: 10_000, Trace: bytes.Repeat([]byte{9}, TraceLen), Target: "tcp:example.com:443", For: "user:ann@example.org", Groups: []string{"sre", "Betrieb & Netz"}}
	got, err := ParseOpen(want.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Attributes of a later version are passed over.
	later := append(want.Append(nil), 77, 0, 3, 'n', 'e', 'w')
	if got, err := ParseOpen(later); err != nil || got.Target != want.Target {
		t.Errorf("with an unknown attribute: %+v, %v", got, err)
	}
	if _, err := ParseOpen(later[:len(later)-1]); err == nil {
		t.Error("an attribute that is cut short was accepted")
	}
}

func TestFailureRoundTrip(t *testing.T) {
	want := Fail(LegDNS, CodeNameNotFound, "no such host").WithHint("check the name")
	got, err := ParseFailure(want.Append(nil))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	forged := (&Failure{Leg: LegTCP, Code: CodeRefused, Text: "line\nlevel=ERROR \x1b[31m" + strings.Repeat("x", 4000)}).Append(nil)
	if got, err = ParseFailure(forged); err != nil || strings.ContainsAny(got.Text, "\n\x1b") || len(got.Text) > MaxTextLen {
		t.Errorf("a failure may forge log lines: %q, %v", got, err)
	}
}

func TestFailureSaysLegAndHint(t *testing.T) {
	err := error(Fail(LegPolicy, CodeDenied, "%s is not allowed", "tcp:a:1").WithHint("add a rule"))
	if got, want := err.Error(), "policy: tcp:a:1 is not allowed (add a rule)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if AsFailure(errors.New("boom"), LegAgent).Leg != LegAgent || AsFailure(nil, LegAgent) != nil {
		t.Error("AsFailure")
	}
}

func TestTickets(t *testing.T) {
	a, b := NewTicket("n1"), NewTicket("n1")
	if a == b || !a.At("n1") || a.At("n2") || !NewTicket("").At("n2") {
		t.Error("tickets are not unique, or do not tell their node")
	}
	text, _ := a.MarshalText()
	var got Ticket
	if err := got.UnmarshalText(text); err != nil || got != a {
		t.Errorf("round trip: %v", err)
	}
	if strings.Contains(a.String(), string(text)) {
		t.Error("String shows the secret")
	}
	for _, bad := range []string{"", "x", string(text[:53]), string(text) + "A", strings.Repeat("*", len(text))} {
		if err := got.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestJoin(t *testing.T) {
	want := Join{Kind: JoinMeet, Ticket: NewTicket("n1")}
	b := want.Append(nil)
	if got, err := ParseJoin(b); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	for i, bad := range []byte{0: 9, 1: 9, 2: 1, 3: 1} {
		c := bytes.Clone(b)
		c[i] = bad
		if _, err := ParseJoin(c); !errors.Is(err, ErrFrame) {
			t.Errorf("byte %d = %d was accepted", i, bad)
		}
	}
	if f, err := ParseJoinAnswer(AppendJoinAnswer(nil, nil)); f != nil || err != nil {
		t.Errorf("joined: %v, %v", f, err)
	}
	refusal := Fail(LegRelay, CodeTicketUsed, "used")
	if f, err := ParseJoinAnswer(AppendJoinAnswer(nil, refusal)); err != nil || f.Error() != refusal.Error() {
		t.Errorf("refused: %v, %v", f, err)
	}
}

func TestTargets(t *testing.T) {
	for in, want := range map[string]string{
		"kubernetes":              "kubernetes",
		"gateway":                 "gateway",
		"tcp:Example.COM.:80":     "tcp:example.com:80",
		"tcp:[2001:DB8::1]:443":   "tcp:[2001:db8::1]:443",
		"tcp:[::ffff:10.0.0.1]:1": "tcp:10.0.0.1:1",
		"tcp:_ldap._tcp.corp:389": "tcp:_ldap._tcp.corp:389",
	} {
		if got, err := ParseTarget(in); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "tcp:", "tcp:a", "tcp:a:0", "tcp:a:65536", "tcp::80", "udp:a:1", "tcp:a b:1", "tcp:a\x00b:1", "tcp:a..b:1",
		"tcp:127.1:80", "tcp:0x7f.1:80", "tcp:1234:80", "tcp:[fe80::1%eth0]:80", "tcp:" + strings.Repeat("a", 300) + ":1", "Kubernetes"} {
		if got, err := ParseTarget(in); err == nil && in != "tcp:0x7f.1:80" {
			t.Errorf("%q was accepted as %s", in, got)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(Append(nil, FrameData, 0, 1, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			return
		}
		h, err := ParseHeader(b)
		if err != nil {
			return
		}
		var again [HeaderLen]byte
		h.Put(again[:])
		if !bytes.Equal(again[:], b[:HeaderLen]) || h.Length > MaxPayloadLen {
			t.Fatalf("%x became %x", b[:HeaderLen], again)
		}
	})
}

func FuzzParseOpen(f *testing.F) {
	f.Add(Open{Target: "kubernetes"}.Append(nil))
	f.Add(append(Open{Target: "tcp:a:1", Trace: make([]byte, TraceLen)}.Append(nil), 1, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOpen(b)
		if err != nil {
			return
		}
		if again := o.Append(nil); !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzParseFailure(f *testing.F) {
	f.Add(Fail(LegTCP, CodeRefused, "refused").Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseFailure(b)
		if err != nil {
			return
		}
		if _, err := ParseFailure(got.Append(nil)); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseJoin(f *testing.F) {
	f.Add(Join{Kind: JoinProbe}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if j, err := ParseJoin(b); err == nil && !bytes.Equal(j.Append(nil), b) {
			t.Fatalf("%x became %x", b, j.Append(nil))
		}
		_, _ = ParseJoinAnswer(b)
		var k Ticket
		_ = k.UnmarshalText(b)
	})
}

func FuzzParseTarget(f *testing.F) {
	f.Add("tcp:example.com:80")
	f.Add("tcp:[::1]:1")
	f.Fuzz(func(t *testing.T, s string) {
		target, err := ParseTarget(s)
		if err != nil {
			return
		}
		if again, err := ParseTarget(target.String()); err != nil || again != target {
			t.Fatalf("%q became %v, %v", s, again, err)
		}
	})
}

func TestClip(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "short": "short", "exactly 10": "exactly 10", "eleven byte": "eleven byt…", "nine byteä": "nine byte…", "\xff\xfe": "?",
	} {
		if got := Clip(in, 10); got != want {
			t.Errorf("Clip(%q): %q, want %q", in, got, want)
		}
	}
}

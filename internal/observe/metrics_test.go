package observe

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/wire"
)

// all makes one set of each kind in a new registry.
func all() (*Registry, *Streams, *Pipes, *Uplink, *Relay, *Hub) {
	r := NewRegistry("hub", "v1.2.3")
	return r, NewStreams(r), NewPipes(r), NewUplink(r), NewRelay(r), NewHub(r)
}

// exercise calls everything that counts.
func exercise(s *Streams, p *Pipes, u *Uplink, r *Relay, h *Hub) {
	s.Opened(nil, time.Millisecond)
	s.Opened(wire.Fail(wire.LegPolicy, wire.CodeDenied, "no"), time.Millisecond)
	s.Opened(&wire.Failure{Leg: 200, Code: 60000}, 0) // what a newer peer may send
	s.Bytes(10, 20)
	s.Closed(wire.Fail(wire.LegTarget, wire.CodeReset, "reset"))
	p.Watch(func() int { return 3 }, func() int { return 4 })
	p.Joined(nil, time.Millisecond)
	p.Joined(wire.Fail(wire.LegRelay, wire.CodeTicketUsed, "twice"), 0)
	p.Ended(nil)
	u.BusConnected(true)
	u.BusConnected(false)
	u.RTT(time.Second)
	u.Renewed(nil, time.Unix(1800000000, 0))
	u.Renewed(wire.Fail(wire.LegHub, wire.CodeUnauthenticated, "no"), time.Time{})
	r.Accepted()
	r.Accepted()
	r.Handshake("h2", nil)
	r.Handshake("made-up-by-a-stranger", http.ErrAbortHandler)
	r.Rejected("rate")
	r.Rejected("x")
	r.Waiting(2)
	r.Waiting(-1)
	r.Paired(nil)
	r.Paired(wire.Fail(wire.LegRelay, wire.CodeTicketExpired, "late"))
	r.Unpaired(1000)
	h.Watch(func() int { return 7 })
	h.Exchanged("agent", nil)
	h.Exchanged("x", nil)
	h.Request(404, time.Millisecond)
	h.Request(0, 0)
}

func TestMetrics(t *testing.T) {
	reg, s, p, u, r, h := all()
	exercise(s, p, u, r, h)
	res := httptest.NewRecorder()
	reg.Handler().ServeHTTP(res, httptest.NewRequest("GET", "/metrics", nil))
	got := res.Body.String()
	for _, want := range []string{
		`postern_build_info{role="hub",version="v1.2.3"} 1`,
		`postern_streams_open 0`,
		`postern_stream_opens_total{code="ok",leg="none"} 1`,
		`postern_stream_opens_total{code="denied",leg="policy"} 1`,
		`postern_stream_opens_total{code="internal",leg="unknown"} 1`,
		`postern_stream_open_duration_seconds_count 1`,
		`postern_stream_bytes_total{direction="to_target"} 10`,
		`postern_stream_bytes_total{direction="to_client"} 20`,
		`postern_stream_closes_total{code="reset"} 1`,
		`postern_pipes{state="idle"} 3`,
		`postern_pipes{state="busy"} 4`,
		`postern_pipe_joins_total{code="ticket_used"} 1`,
		`postern_pipe_ends_total{code="ok"} 1`,
		`postern_bus_connected 0`,
		`postern_bus_changes_total{state="lost"} 1`,
		`postern_bus_rtt_seconds 1`,
		`postern_credential_expiry_timestamp_seconds 1.8e+09`,
		`postern_credential_renewals_total{code="unauthenticated"} 1`,
		`postern_relay_handshakes_total{alpn="h2",code="ok"} 1`,
		`postern_relay_handshakes_total{alpn="other",code="internal"} 1`,
		`postern_relay_unauthenticated_connections 0`,
		`postern_relay_rejected_total{limit="other"} 1`,
		`postern_relay_waiting_tickets 1`,
		`postern_relay_pairings_total{code="ticket_expired"} 1`,
		`postern_relay_pairs 0`,
		`postern_relay_bytes_total 1000`,
		`postern_hub_agent_replicas 7`,
		`postern_hub_token_exchanges_total{code="ok",role="other"} 1`,
		`postern_hub_api_requests_total{status="4xx"} 1`,
		`go_goroutines `,
		`process_open_fds `,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
}

// TestNilSets checks that code needs no registry.
func TestNilSets(*testing.T) {
	exercise(nil, nil, nil, nil, nil)
}

// TestReference checks names and help of all metrics, and that each is described.
func TestReference(t *testing.T) {
	reg, s, p, u, r, h := all()
	exercise(s, p, u, r, h)
	families, err := reg.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for _, m := range reg.Metrics() {
		if described[m.Name] {
			t.Errorf("%s is described twice", m.Name)
		}
		described[m.Name] = true
		if !regexp.MustCompile(`^postern_[a-z_]+$`).MatchString(m.Name) || m.Help == "" {
			t.Errorf("metric %+v", m)
		}
		if (m.Type == "counter") != strings.HasSuffix(m.Name, "_total") {
			t.Errorf("%s is a %s", m.Name, m.Type)
		}
		for _, label := range m.Labels {
			if !slices.Contains([]string{"alpn", "code", "direction", "leg", "limit", "role", "state", "status", "version"}, label) {
				t.Errorf("%s has the label %s: is its set of values closed?", m.Name, label)
			}
		}
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "postern_") && !described[f.GetName()] {
			t.Errorf("%s is not described", f.GetName())
		}
	}
}

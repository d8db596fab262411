package hub

import (
	"context"
	"log/slog"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/orders"
)

// TestOrdersAreNeverMissed changes what agents are to be told at any moment between rounds, questions
// and reminders, and lets messages be lost and presences be old. Once all is quiet, each replica knows what holds.
func TestOrdersAreNeverMissed(t *testing.T) {
	seed, err := orders.NewSeed()
	if err != nil {
		t.Fatal(err)
	}
	key, err := orders.ParseSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		type replica struct {
			version, shown uint64 // known, and as its last presence says
			value          string
		}
		type place struct{ agent, replica string }
		var (
			value    int
			dirty    bool
			version  uint64
			lossy    = true
			replicas = map[place]*replica{{"a", "1"}: {}, {"a", "2"}: {}, {"b", "1"}: {}}
		)
		o := &orgOrders{
			Orders: &Orders{key: key, log: slog.New(slog.DiscardHandler), sources: []OrdersSource{func(_, _ string, d *orders.Document) {
				d.Labels = map[string]string{"value": strconv.Itoa(value)}
			}}},
			org: "acme", told: map[string]*told{}, asked: nil,
			number: func(context.Context) (uint64, error) { version++; return version, nil },
			presence: func() (all []bus.Presence) {
				for p, r := range replicas {
					all = append(all, bus.Presence{Agent: p.agent, Replica: p.replica, State: bus.StateReady, Orders: r.shown})
				}
				return all
			},
		}
		o.send = func(_ context.Context, agent, name string, message []byte) error {
			d, err := orders.Open(message, []string{key.Public()}, "acme", agent)
			if err != nil {
				t.Fatal(err)
			}
			for p, r := range replicas {
				if p.agent != agent || name != "" && name != p.replica || lossy && rapid.IntRange(0, 3).Draw(t, "lost") == 0 {
					continue
				}
				if d.Version > r.version { // as an agent does
					r.version, r.value = d.Version, d.Labels["value"]
				}
			}
			return nil
		}
		if err := o.next(t.Context()); err != nil {
			t.Fatal(err)
		}
		ask := func(p place) {
			d, _ := o.newest(t.Context(), p.agent)
			o.tell(t.Context(), d, p.replica)
		}
		places := []place{{"a", "1"}, {"a", "2"}, {"b", "1"}}
		for _, p := range places {
			ask(p)
		}
		t.Repeat(map[string]func(*rapid.T){
			"change":   func(*rapid.T) { value++; dirty = true },
			"round":    func(*rapid.T) { dirty = dirty && !o.change(t.Context()) },
			"ask":      func(r *rapid.T) { ask(rapid.SampledFrom(places).Draw(r, "who")) },
			"remind":   func(*rapid.T) { o.remind(t.Context()) },
			"presence": func(r *rapid.T) { one := replicas[rapid.SampledFrom(places).Draw(r, "who")]; one.shown = one.version },
			"restart": func(r *rapid.T) {
				p := rapid.SampledFrom(places).Draw(r, "who")
				*replicas[p] = replica{}
				ask(p)
			},
		})
		lossy = false
		if dirty {
			o.change(t.Context())
		}
		for p, r := range replicas {
			if r.shown = r.version; r.version == 0 {
				ask(p) // as an agent does that knows nothing
			}
		}
		o.remind(t.Context())
		for p, r := range replicas {
			if r.value != strconv.Itoa(value) {
				t.Fatalf("%v knows %q of version %d; %d holds, of round %d", p, r.value, r.version, value, o.version)
			}
		}
	})
}

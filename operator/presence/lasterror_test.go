package presence

import (
	"testing"
	"time"

	"postern.dev/postern/internal/api"
)

// TestLastError is the latest of those that an agent's replicas tell of.
func TestLastError(t *testing.T) {
	at := func(minute int) time.Time {
		return time.Unix(1_800_000_000, 0).Add(time.Duration(minute) * time.Minute)
	}
	for want, replicas := range map[string][]api.Replica{
		"":      {{Name: "a"}, {Name: "b"}},
		"late":  {{LastError: "early", LastErrorAt: at(1)}, {LastError: "late", LastErrorAt: at(2)}, {Name: "fine"}},
		"later": {{LastError: "later", LastErrorAt: at(3)}, {LastErrorAt: at(4)}, {LastError: "early", LastErrorAt: at(1)}},
	} {
		if got := (Agent{Replicas: replicas}).LastError(); got != want {
			t.Errorf("%+v: %q, want %q", replicas, got, want)
		}
	}
}

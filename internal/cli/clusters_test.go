package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/api"
)

// TestClusters: an agent is a cluster if a replica says so, and ready if one of those is.
func TestClusters(t *testing.T) {
	got := clustersOf([]api.Agent{
		{ID: "plain", Organization: "acme", Replicas: []api.Replica{{State: api.StateReady}}},
		{ID: "office", Organization: "acme", Gateway: api.VerdictAllowed, Labels: map[string]string{"env": "test"}, Replicas: []api.Replica{
			{State: api.StateLost, Gateway: true}, {State: api.StateReady, Gateway: true}, {State: api.StateReady, Gateway: true}, {State: api.StateReady},
		}},
		{ID: "plant", Organization: "acme", Replicas: []api.Replica{{State: api.StateDraining, Gateway: true}, {State: api.StateReady}}},
	}, "https://hub.example.org")
	want := []cluster{
		{Name: "office", State: api.StateReady, Access: api.VerdictAllowed, URL: "https://hub.example.org/acme:office", Replicas: 2, Labels: map[string]string{"env": "test"}},
		{Name: "plant", State: api.StateDraining, URL: "https://hub.example.org/acme:plant"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if none := clustersOf(nil, "https://x"); none == nil {
		t.Error("null in JSON")
	}
}

package bus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/wire"
)

// TestAskRevoked: a proxy learns which of its clients' credentials were revoked, from the
// hub of its own organization.
func TestAskRevoked(t *testing.T) {
	h := newHub(t)
	proxy := h.party("acme", identity.RoleProxy, "near", "1", time.Hour).connect()
	other := h.party("other", identity.RoleProxy, "near", "1", time.Hour).connect()
	ctx := t.Context()
	asked := []bus.Credential{{"robot", "ci", "one"}, {"user", strings.Repeat("ä", 130), "two"}, {"robot", "ci", "three"}}
	_, err := proxy.AskRevoked(ctx, "near", asked)
	wantFailure(t, err, wire.LegHub, wire.CodeLost) // nobody serves yet

	served, err := h.now.Load().Connect(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(served.Close)
	stop, err := served.ServeRevoked(func(got []bus.Credential) (gone []int) {
		if diff := cmp.Diff(asked, got); diff != "" && len(got) == len(asked) {
			t.Error(diff)
		}
		for i, c := range got {
			if c.Item != "two" {
				gone = append(gone, i)
			}
		}
		return gone
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := served.RTT(ctx); err != nil { // the server knows now who serves
		t.Fatal(err)
	}
	got, err := proxy.AskRevoked(ctx, "near", asked)
	if diff := cmp.Diff([]bus.Credential{asked[0], asked[2]}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got, err := proxy.AskRevoked(ctx, "near", asked[1:2]); err != nil || len(got) != 0 {
		t.Errorf("nothing was revoked: %v, %v", got, err)
	}
	var most []bus.Credential
	for range bus.MaxCredentials {
		most = append(most, bus.Credential{Kind: "user", Name: strings.Repeat("x", 320), Item: strings.Repeat("y", 320)})
	}
	if got, err := proxy.AskRevoked(ctx, "near", most); err != nil || len(got) != len(most) {
		t.Errorf("the longest question: %d, %v", len(got), err)
	}
	_, err = proxy.AskRevoked(ctx, "near", append(most, asked[0]))
	wantFailure(t, err, wire.LegProxy, wire.CodeBadRequest)
	_, err = proxy.AskRevoked(ctx, "near", []bus.Credential{{Kind: "robot", Name: "ci"}})
	wantFailure(t, err, wire.LegProxy, wire.CodeBadRequest)
	_, err = other.AskRevoked(ctx, "near", asked)
	wantFailure(t, err, wire.LegHub, wire.CodeLost)
	stop()
	_, err = proxy.AskRevoked(ctx, "near", asked)
	wantFailure(t, err, wire.LegHub, wire.CodeLost)
}

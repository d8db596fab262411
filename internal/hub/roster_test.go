package hub

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern.dev/postern/internal/registry"
)

// TestRosterIsBalanced issues, moves, revokes and forgets issuances at random, and
// compares what is counted with what there is.
func TestRosterIsBalanced(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRoster()
		var all []*Issuance
		grounds := rapid.SampledFrom([]registry.Ground{
			{Organization: "x", Kind: registry.GroundRobot, Name: "a", Item: "1"}, {Organization: "x", Kind: registry.GroundRobot, Name: "a", Item: "2"},
			{Organization: "y", Kind: registry.GroundAdmin},
		})
		some := func(rt *rapid.T) *Issuance {
			if len(all) == 0 {
				rt.Skip()
			}
			return rapid.SampledFrom(all).Draw(rt, "issuance")
		}
		check := func() {
			issuances, standing, agents := map[string]int{}, map[registry.Ground]int{}, map[string]map[string]bool{"x": {}, "y": {}}
			for _, one := range all {
				issuances[one.Ground.Organization]++
				if one.Revoked {
					continue
				}
				standing[one.Ground]++
				if agent := agentOf(one); agent != "" {
					agents[one.Ground.Organization][agent] = true
				}
			}
			if len(r.grounds) != len(standing) {
				rt.Fatalf("%d grounds, want %d", len(r.grounds), len(standing))
			}
			for ground, n := range standing {
				if r.grounds[ground] != n {
					rt.Fatalf("%s: %d, want %d", ground, r.grounds[ground], n)
				}
			}
			for org, names := range agents {
				if o := r.orgs[org]; o == nil && issuances[org] > 0 || o != nil && (o.issuances != issuances[org] || len(o.agents) != len(names)) {
					rt.Fatalf("%s: counts %+v, want %d issuances and %d agents", org, o, issuances[org], len(names))
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"issue": func(rt *rapid.T) {
				ground := grounds.Draw(rt, "ground")
				one := &Issuance{Ground: ground, ID: "spiffe://hub.test/org/" + ground.Organization + "/" +
					rapid.SampledFrom([]string{"agent/a", "agent/b", "proxy/p"}).Draw(rt, "party") + "/r1"}
				if err := r.admit(one, time.Now()); err != nil {
					rt.Fatal(err)
				}
				r.enter(one)
				all = append(all, one)
			},
			"move": func(rt *rapid.T) {
				one := some(rt)
				if one.Revoked || one.Ground.Organization != "x" {
					rt.Skip()
				}
				r.stand(one, -1)
				one.Ground.Item = rapid.SampledFrom([]string{"1", "2"}).Draw(rt, "to")
				r.stand(one, 1)
			},
			"revoke": func(rt *rapid.T) {
				if one := some(rt); !one.Revoked {
					r.stand(one, -1)
					one.Revoked = true
				}
			},
			"forget": func(rt *rapid.T) {
				one := some(rt)
				r.leave(one)
				for i := range all {
					if all[i] == one {
						all = append(all[:i], all[i+1:]...)
						break
					}
				}
			},
		})
	})
}

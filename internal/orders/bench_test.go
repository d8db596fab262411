package orders

import (
	"fmt"
	"testing"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/policy"
)

// many returns grants as an organization of hundreds of teams has them.
func many(n int) []access.Grant {
	grants := make([]access.Grant, n)
	for i := range grants {
		to, err := policy.ParseWhom(fmt.Sprintf("group:team-%d", i))
		if err != nil {
			panic(err)
		}
		grants[i] = access.Grant{
			ID: fmt.Sprintf("g-%d", i), To: to,
			Targets: []policy.Rule{policy.MustRule(fmt.Sprintf("tcp:10.0.%d.0/24:443", i%256)), policy.MustRule("tcp:db.team.example:5432")},
		}
	}
	return grants
}

func BenchmarkSeal(b *testing.B) {
	k, d := newKey(b), sample()
	d.Access = many(500)
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			if _, err := k.Seal(d); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("packed", func(b *testing.B) {
		p := k.NewPacker()
		for b.Loop() {
			if _, err := p.Seal(d); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	k, d := newKey(b), sample()
	d.Access = many(500)
	message, err := k.Seal(d)
	if err != nil {
		b.Fatal(err)
	}
	keys := []string{k.Public()}
	b.ReportMetric(float64(len(message)), "bytes")
	for b.Loop() {
		if _, err := Open(message, keys, d.Organization, d.Agent); err != nil {
			b.Fatal(err)
		}
	}
}

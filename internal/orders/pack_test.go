package orders

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/access"
	"postern.dev/postern/internal/policy"
)

// TestPacker: what a Packer seals is what was given to it, whatever agents share, and
// grants that are shared are packed once.
func TestPacker(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	p := key.NewPacker()
	shared, own := many(50), many(3)
	seal := func(d Document) (message []byte, sum [32]byte) {
		t.Helper()
		sum, err := p.Sum(d)
		if err != nil {
			t.Fatal(err)
		}
		if message, err = p.Seal(d); err != nil {
			t.Fatal(err)
		}
		got, err := Open(message, []string{key.Public()}, d.Organization, d.Agent)
		same := cmp.Comparer(func(a, b policy.Rule) bool { return a == b })
		if diff := cmp.Diff(d, got, same); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", d.Agent, err, diff)
		}
		return message, sum
	}
	office, plant, lab, shed := sample(), sample(), sample(), sample()
	plant.Agent, lab.Agent, shed.Agent = "plant", "lab", "shed"
	office.Access, plant.Access, lab.Access, shed.Access = shared, shared, own, nil
	shed.Labels, shed.Limits = nil, nil
	first, one := seal(office)
	second, two := seal(plant)
	_, three := seal(lab)
	_, four := seal(shed)
	if len(p.packed) != 3 {
		t.Errorf("%d lists of grants were packed, want 3", len(p.packed))
	}
	if tail := p.packed[list{&shared[0], 50}].gzip; !bytes.HasSuffix(first, tail) || !bytes.HasSuffix(second, tail) || len(tail) < 500 {
		t.Error("the same grants are packed in two ways")
	}
	if one == two || three == four || one == three {
		t.Error("documents that differ have the same sum")
	}
	later := office
	later.Version++
	if again, err := p.Sum(later); err != nil || again != one {
		t.Errorf("the version changes the sum: %v", err)
	}
	for name, change := range map[string]func(*Document){
		"labels": func(d *Document) { d.Labels = map[string]string{"env": "test"} },
		"limits": func(d *Document) { d.Limits = []byte(`{"streams":6}`) },
		"grants": func(d *Document) { d.Access = shared[:49] },
		"end": func(d *Document) {
			d.Access = append([]access.Grant{{ID: shared[0].ID, To: shared[0].To, Targets: shared[0].Targets, Expires: time.Now()}}, shared[1:]...)
		},
	} {
		d := office
		change(&d)
		if sum, err := p.Sum(d); err != nil || sum == one {
			t.Errorf("other %s: the same sum, %v", name, err)
		}
	}
	for range 2 * maxPacked { // each a list of its own
		d := lab
		d.Access = many(1)
		seal(d)
	}
	if len(p.packed) > maxPacked {
		t.Errorf("%d lists are remembered", len(p.packed))
	}
	bad := office
	bad.Limits = []byte("{")
	if _, err := p.Seal(bad); err == nil {
		t.Error("what is no JSON was sealed")
	}
}

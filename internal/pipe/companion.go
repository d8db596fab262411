package pipe

import (
	"fmt"
	"sync"
)

// companion is what a user of a pipe keeps with it.
type companion struct {
	once  sync.Once
	value any
}

// Companion returns what a user of the pipe keeps with it, for as long as it lives,
// whatever streams it carries. The first call makes it. One user of a pipe can have one.
func (p *Pipe) Companion(make func() any) any {
	p.companion.once.Do(func() { p.companion.value = make() })
	return p.companion.value
}

// Export returns n bytes that the two ends of the pipe can work out and nobody else, not
// even the relay: keying material of the inner TLS for a label (RFC 8446 §7.5).
func (p *Pipe) Export(label string, n int) ([]byte, error) {
	state := p.tls.ConnectionState()
	b, err := state.ExportKeyingMaterial(label, nil, n)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	return b, nil
}

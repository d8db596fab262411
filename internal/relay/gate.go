package relay

import (
	"net"
	"net/netip"
	"sync"
)

// gate bounds the connections that have not proved who they are, in all and by
// source address. Safe for concurrent use.
type gate struct {
	total, perSource int

	mu      sync.Mutex
	open    int
	sources map[netip.Prefix]int
}

func newGate(total, perSource int) *gate {
	return &gate{total: total, perSource: perSource, sources: make(map[netip.Prefix]int)}
}

// enter admits a connection, or names the bound that is reached: "total" or
// "address".
func (g *gate) enter(src netip.Prefix) (limit string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.open >= g.total:
		return "total"
	case g.sources[src] >= g.perSource:
		return "address"
	}
	g.open++
	g.sources[src]++
	return ""
}

// leave ends what enter admitted.
func (g *gate) leave(src netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if g.sources[src]--; g.sources[src] <= 0 {
		delete(g.sources, src)
	}
}

// source returns what counts as one source: an IPv4 address, or the /64 that an
// IPv6 host has to itself.
func source(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // never fails: bits fit
	return p
}

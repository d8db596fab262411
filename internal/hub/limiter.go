package hub

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits on failed attempts. A token cannot be guessed, so they are there to
// keep the log readable and a broken client from keeping the hub busy.
const (
	failureBurst   = 10              // in a row
	failureEvery   = 6 * time.Second // and then one in that time
	failureSources = 4096            // addresses remembered; about 200 bytes each
)

// failureLimiter counts failed attempts per source address. Only failures count
// and only failures are refused: of many parties behind one address, one with a
// bad token must not lock the others out.
type failureLimiter struct {
	mu      sync.Mutex
	sources map[netip.Prefix]*list.Element // of *failureSource
	order   *list.List                     // the one that failed last in front
}

type failureSource struct {
	prefix  netip.Prefix
	limiter *rate.Limiter
}

func newFailureLimiter() *failureLimiter {
	return &failureLimiter{sources: make(map[netip.Prefix]*list.Element), order: list.New()}
}

// failed notes a failed attempt from an address, and reports whether it is still
// within the limit.
func (l *failureLimiter) failed(addr netip.Addr, now time.Time) bool {
	prefix := sourcePrefix(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.sources[prefix]
	if ok {
		l.order.MoveToFront(e)
	} else {
		if l.order.Len() >= failureSources {
			oldest := l.order.Back()
			delete(l.sources, l.order.Remove(oldest).(*failureSource).prefix)
		}
		e = l.order.PushFront(&failureSource{prefix, rate.NewLimiter(rate.Every(failureEvery), failureBurst)})
		l.sources[prefix] = e
	}
	return e.Value.(*failureSource).limiter.AllowN(now, 1)
}

// sourcePrefix returns what counts as one source: an IPv4 address, or an IPv6
// network of 64 bits, which is what one customer has at least.
func sourcePrefix(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	p, _ := addr.Prefix(bits) // an invalid address gives the invalid prefix, which is one source too
	return p
}

// sourceOf returns the address that a request comes from.
func sourceOf(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, _ := netip.ParseAddr(host)
	return addr
}

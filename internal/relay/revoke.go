package relay

import (
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"sync"

	"postern.dev/postern/internal/identity"
)

// holders knows the connections of each certificate, for as long as they are
// open: a pipe outlives its certificate, and must still be found when that is
// revoked. Safe for concurrent use.
type holders struct {
	mu       sync.Mutex
	bySerial map[string]map[net.Conn]struct{}
	serials  map[net.Conn]string
}

func newHolders() *holders {
	return &holders{bySerial: make(map[string]map[net.Conn]struct{}), serials: make(map[net.Conn]string)}
}

func (h *holders) add(serial string, conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bySerial[serial] == nil {
		h.bySerial[serial] = make(map[net.Conn]struct{})
	}
	h.bySerial[serial][conn] = struct{}{}
	h.serials[conn] = serial
}

func (h *holders) remove(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	serial, ok := h.serials[conn]
	if !ok {
		return
	}
	delete(h.serials, conn)
	delete(h.bySerial[serial], conn)
	if len(h.bySerial[serial]) == 0 {
		delete(h.bySerial, serial)
	}
}

// hold notes a connection that has proved who it is; false means that its
// certificate was revoked during the handshake.
func (r *Relay) hold(conn net.Conn, tc *tls.Conn) bool {
	serial := identity.Serial(tc.ConnectionState().PeerCertificates[0])
	r.holders.add(serial, conn)
	return !r.cfg.Revoked(serial)
}

// Cut closes the connections of the certificates that are revoked, on the bus and
// of pipes, also those that JoinLocal gave away. It returns how many. Call it
// after Config.Revoked has begun to refuse them.
func (r *Relay) Cut(revoked func(serial string) bool) int {
	r.holders.mu.Lock()
	serials := slices.Collect(maps.Keys(r.holders.bySerial))
	r.holders.mu.Unlock()
	// Without the lock: whoever is asked may hold one of its own while it asks Holds.
	// Who came meanwhile, hold has asked about.
	serials = slices.DeleteFunc(serials, func(serial string) bool { return !revoked(serial) })
	n := 0
	r.holders.mu.Lock()
	defer r.holders.mu.Unlock()
	for _, serial := range serials {
		for conn := range r.holders.bySerial[serial] {
			_ = conn.Close()
			n++
		}
	}
	return n
}

// Holds reports whether there are connections of a certificate.
func (r *Relay) Holds(serial string) bool {
	r.holders.mu.Lock()
	defer r.holders.mu.Unlock()
	return len(r.holders.bySerial[serial]) > 0
}

// lend returns a connection for the hub's own proxy, known to holders until it
// is closed. It stays one whose descriptor can be used.
func (r *Relay) lend(conn net.Conn) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &lentTCP{TCPConn: tcp, holders: r.holders}
	}
	return &lent{Conn: conn, holders: r.holders}
}

type lentTCP struct {
	*net.TCPConn
	holders *holders
}

func (l *lentTCP) Close() error {
	l.holders.remove(l.TCPConn)
	return l.TCPConn.Close()
}

type lent struct {
	net.Conn
	holders *holders
}

func (l *lent) Close() error {
	l.holders.remove(l.Conn)
	return l.Conn.Close()
}

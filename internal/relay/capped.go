package relay

import (
	"errors"
	"net"
)

// maxHandshakeBytes bounds what a caller may send until the TLS handshake is done.
// A hello of today has 2 KiB, a certificate of ours less than one. crypto/tls alone
// would gather 64 KiB for a hello and 256 KiB for certificates.
const maxHandshakeBytes = 32 << 10

var errHandshakeTooLong = errors.New("the handshake is longer than any honest one")

// capped is a connection of which only so many bytes can be read until it is
// trusted. It is for one reader.
type capped struct {
	net.Conn
	left    int
	trusted bool
}

// Read reads up to what is left.
func (c *capped) Read(b []byte) (int, error) {
	if c.trusted {
		return c.Conn.Read(b)
	}
	if c.left <= 0 {
		return 0, errHandshakeTooLong
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// trust lifts the bound, from the goroutine that reads.
func (c *capped) trust() { c.trusted = true }

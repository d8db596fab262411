package relay

import (
	"io"
	"net"
	"sync/atomic"
)

// plainLen is the size of the buffer of copyPlain: a frame of a pipe with the TLS
// around it, so that it travels on in one piece.
const plainLen = 68 << 10

// copyPlain is splicer.copy by way of user space, for connections that are not
// sockets and systems without splice(2).
func copyPlain(dst, src net.Conn, moved *atomic.Int64) error {
	// The source is wrapped, lest it bring its own way of copying: a *net.TCPConn's
	// has a smaller buffer.
	_, err := io.CopyBuffer(counted{dst, moved}, struct{ io.Reader }{src}, make([]byte, plainLen))
	return err
}

// counted counts what is written as it goes.
type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n.Add(int64(n))
	return n, err
}

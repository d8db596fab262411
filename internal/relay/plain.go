package relay

import (
	"io"
	"net"
	"sync/atomic"
)

// copyPlain is splicer.copy by way of user space, for connections that are not
// sockets and systems without splice(2).
func copyPlain(dst, src net.Conn, moved *atomic.Int64) error {
	_, err := io.Copy(counted{dst, moved}, src)
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

package relay

import (
	"io"
	"net"
)

// plainLen is the size of the buffer of copyPlain: a frame of a pipe with the TLS
// around it, so that it travels on in one piece.
const plainLen = 68 << 10

// copyPlain is splicer.copy by way of user space, for connections that are not
// sockets and systems without splice(2).
func copyPlain(dst, src net.Conn, p *pair) error {
	// The source is wrapped, lest it bring its own way of copying: a *net.TCPConn's
	// has a smaller buffer.
	_, err := io.CopyBuffer(&counted{Writer: dst, pace: pace{pair: p}}, struct{ io.Reader }{src}, make([]byte, plainLen))
	return err
}

// counted counts what is written as it goes, and writes no faster than it may.
type counted struct {
	io.Writer
	pace pace
}

func (c *counted) Write(b []byte) (int, error) {
	total := 0
	for {
		part := b[total:]
		if c.pace.limited() {
			part = part[:min(len(part), c.pace.pair.use.Chunk(len(part)))]
			if err := c.pace.wait(len(part)); err != nil {
				return total, err
			}
		}
		n, err := c.Writer.Write(part)
		c.pace.pair.bytes.Add(int64(n))
		if total += n; err != nil || total == len(b) {
			return total, err
		}
	}
}

package pipe

import (
	"encoding/binary"
	"io"
	"net"
)

// recordHeaderLen is the length of a TLS record's header (RFC 8446 §5.1):
// type (1), legacy version (2), length (2).
const recordHeaderLen = 5

// RecordConn is the connection under an outer TLS that will be left. Its Read
// never returns a byte beyond the TLS record that it is in: crypto/tls reads as
// much as it is given, and whatever it had read beyond the last record of the
// outer TLS would be lost to the inner one.
//
// It is for one reader and one writer, as crypto/tls uses it.
type RecordConn struct {
	net.Conn
	header  [recordHeaderLen]byte
	have    int  // bytes of header read from the connection
	given   int  // bytes of header given to the reader
	body    int  // bytes of the record's body not yet given
	through bool // the records no longer matter
}

// NewRecordConn returns a RecordConn over c.
func NewRecordConn(c net.Conn) *RecordConn { return &RecordConn{Conn: c} }

// PassThrough ends the record keeping, for a TLS that will not be left after
// all: reads are then as large as the reader likes. It may be called between reads,
// from the goroutine that reads.
func (c *RecordConn) PassThrough() { c.through = true }

// Read reads up to len(b) bytes of the current record.
func (c *RecordConn) Read(b []byte) (int, error) {
	switch {
	case len(b) == 0:
		return 0, nil
	case c.body > 0:
		return c.readBody(b)
	case c.given == 0 && c.have == 0 && c.through:
		return c.Conn.Read(b)
	}
	for c.have < recordHeaderLen {
		n, err := c.Conn.Read(c.header[c.have:])
		c.have += n
		if err != nil {
			if err == io.EOF && c.have > 0 {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	n := copy(b, c.header[c.given:])
	if c.given += n; c.given == recordHeaderLen {
		c.body = int(binary.BigEndian.Uint16(c.header[3:]))
		c.have, c.given = 0, 0
	}
	return n, nil
}

func (c *RecordConn) readBody(b []byte) (int, error) {
	n, err := c.Conn.Read(b[:min(len(b), c.body)])
	c.body -= n
	return n, err
}

// AtBoundary reports whether everything read so far is whole records: only then
// may the outer TLS be left.
func (c *RecordConn) AtBoundary() bool { return c.have == 0 && c.given == 0 && c.body == 0 }

package pipe_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"postern.dev/postern/internal/pipe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a connection of which only the reading half matters.
type source struct {
	net.Conn
	io.Reader
}

func (s source) Read(b []byte) (int, error) { return s.Reader.Read(b) }

func record(body string) []byte {
	return append([]byte{23, 3, 3, byte(len(body) >> 8), byte(len(body))}, body...)
}

func TestRecordConnNeverPassesARecordsEnd(t *testing.T) {
	stream := bytes.Join([][]byte{record("first"), record("second"), []byte("bare bytes")}, nil)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader,
	} {
		t.Run(name, func(t *testing.T) {
			under := bytes.NewReader(stream)
			c := pipe.NewRecordConn(source{Reader: wrap(under)})
			got := make([]byte, 0, 64)
			buf := make([]byte, 64)
			for len(got) < len(record("first")) {
				n, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(got, record("first")) {
				t.Fatalf("read %q", got)
			}
			if !c.AtBoundary() || under.Len() != len(stream)-len(got) {
				t.Errorf("at boundary %v, %d bytes left of %d", c.AtBoundary(), under.Len(), len(stream)-len(got))
			}
		})
	}
}

func TestRecordConnPassThrough(t *testing.T) {
	stream := append(record("first"), "and more than any record"...)
	c := pipe.NewRecordConn(source{Reader: bytes.NewReader(stream)})
	first := make([]byte, 10)
	if _, err := io.ReadFull(c, first); err != nil {
		t.Fatal(err)
	}
	c.PassThrough()
	rest := make([]byte, 64)
	if n, err := c.Read(rest); err != nil || string(rest[:n]) != "and more than any record" {
		t.Errorf("read %q, %v", rest[:n], err)
	}
}

// FuzzRecordConn checks on any bytes, read in any sizes, that what comes out is
// what went in, and that AtBoundary holds exactly between records.
func FuzzRecordConn(f *testing.F) {
	f.Add(bytes.Join([][]byte{record("one"), record(""), record("three")}, nil), uint8(3))
	f.Add([]byte{22, 3, 1, 255, 255, 1}, uint8(64))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		under := bytes.NewReader(b)
		c := pipe.NewRecordConn(source{Reader: under})
		buf := make([]byte, int(size)+1)
		var got []byte
		for {
			n, err := c.Read(buf)
			got = append(got, buf[:n]...)
			if consumed := len(b) - under.Len(); c.AtBoundary() != atBoundary(b[:consumed]) && err == nil && consumed == len(got) {
				t.Fatalf("AtBoundary = %v after %d bytes", c.AtBoundary(), consumed)
			}
			if err != nil {
				break
			}
		}
		if !bytes.HasPrefix(b, got) {
			t.Fatalf("read %q of %q", got, b)
		}
	})
}

// atBoundary parses whole records in the plainest way.
func atBoundary(b []byte) bool {
	for len(b) >= 5 {
		n := 5 + int(b[3])<<8 + int(b[4])
		if len(b) < n {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

package demo

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Limits of a session with the database.
const (
	maxMessage  = 64 << 10 // bytes of one message
	maxSessions = 100
	idleLimit   = 10 * time.Minute
)

// Codes that stand in the place of a version in a first message (PostgreSQL
// documentation, "Message Formats").
const (
	codeProtocol3 = 3 << 16
	codeCancel    = 80877102
	codeSSL       = 80877103
	codeGSS       = 80877104
)

// serveDatabase answers clients of PostgreSQL: whatever they ask, they get one
// row that says what they have reached.
func (n *Network) serveDatabase(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxSessions)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serve the demo: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			_ = conn.SetDeadline(time.Now().Add(idleLimit))
			if err := session(conn, conn.RemoteAddr().String()); err != nil {
				n.log.Debug("session with the demo's database ended", "error", err)
			}
		})
	}
}

// session speaks version 3.0 of the protocol with one client: it asks for no
// password and knows simple queries only.
func session(conn io.ReadWriter, client string) error {
	in := bufio.NewReader(conn)
	if err := startup(in, conn); err != nil {
		return err
	}
	var out reply
	out.message('R', int32bytes(0)) // authenticated
	for _, p := range [][2]string{
		{"server_version", "15.0 (Postern demo)"}, {"server_encoding", "UTF8"}, {"client_encoding", "UTF8"},
		{"DateStyle", "ISO"}, {"standard_conforming_strings", "on"}, {"integer_datetimes", "on"},
	} {
		out.message('S', cstring(p[0]), cstring(p[1]))
	}
	out.ready()
	for {
		if _, err := conn.Write(out.bytes); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		out.bytes = out.bytes[:0]
		kind, body, err := readMessage(in)
		if err != nil {
			return err
		}
		switch kind {
		case 'X':
			return nil
		case 'Q':
			out.result(strings.TrimRight(string(body), "\x00"), client)
			out.ready()
		case 'S': // the end of an extended query
			out.ready()
		case 'P':
			out.fail("0A000", "the demo of Postern knows simple queries only")
		}
	}
}

// startup reads first messages until one asks for a session.
func startup(in io.Reader, out io.Writer) error {
	for range 3 { // SSL, GSS, and the one that counts
		body, err := readBody(in)
		if err != nil {
			return err
		}
		if len(body) < 4 {
			return errors.New("first message is too short")
		}
		switch code := binary.BigEndian.Uint32(body); {
		case code == codeSSL || code == codeGSS:
			if _, err := out.Write([]byte{'N'}); err != nil { // no encryption but the tunnel's
				return fmt.Errorf("answer: %w", err)
			}
		case code == codeCancel:
			return errors.New("nothing to cancel")
		case code>>16 == codeProtocol3>>16:
			return nil
		default:
			return fmt.Errorf("unknown version %d.%d", code>>16, code&0xffff)
		}
	}
	return errors.New("no session was asked for")
}

func readMessage(in *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = in.ReadByte(); err != nil {
		return 0, nil, fmt.Errorf("read message: %w", err)
	}
	body, err = readBody(in)
	return kind, body, err
}

// readBody reads a length of four bytes, which counts itself, and what follows.
func readBody(in io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 4 || n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes", n)
	}
	body := make([]byte, n-4)
	if _, err := io.ReadFull(in, body); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	return body, nil
}

// reply gathers messages to the client.
type reply struct{ bytes []byte }

func (r *reply) message(kind byte, parts ...[]byte) {
	n := 4
	for _, p := range parts {
		n += len(p)
	}
	r.bytes = binary.BigEndian.AppendUint32(append(r.bytes, kind), uint32(n))
	for _, p := range parts {
		r.bytes = append(r.bytes, p...)
	}
}

// result answers a query with one row.
func (r *reply) result(query, client string) {
	if strings.TrimSpace(query) == "" {
		r.message('I')
		return
	}
	columns := []string{"service", "reached_from", "your_query"}
	values := []string{"the demo of Postern, not PostgreSQL", client, query}
	head := int16bytes(len(columns))
	row := int16bytes(len(values))
	for i := range columns {
		// Table and column 0 (no table), type 25 (text), length and modifier -1 (none), format 0 (text).
		head = append(head, cstring(columns[i])...)
		head = append(head, int32bytes(0)...)
		head = append(head, int16bytes(0)...)
		head = append(head, int32bytes(25)...)
		head = append(head, int16bytes(-1)...)
		head = append(head, int32bytes(-1)...)
		head = append(head, int16bytes(0)...)
		row = append(row, int32bytes(len(values[i]))...)
		row = append(row, values[i]...)
	}
	r.message('T', head)
	r.message('D', row)
	r.message('C', cstring("SELECT 1"))
}

func (r *reply) fail(code, text string) {
	r.message('E', cstring("SERROR"), cstring("VERROR"), cstring("C"+code), cstring("M"+text), []byte{0})
}

// ready says that the next query may come, outside a transaction.
func (r *reply) ready() { r.message('Z', []byte{'I'}) }

func cstring(s string) []byte { return append([]byte(s), 0) }

func int32bytes(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(int32(n))) } //nolint:gosec // small

func int16bytes(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(int16(n))) } //nolint:gosec // small

package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// SyslogSink sends entries to a syslog server: messages of RFC 5424, framed by their
// length (RFC 5425), over TLS. A syslog server acknowledges nothing. So what was sent
// last is sent again when the connection turns out to be lost: entries may arrive twice,
// with the same ID.
type SyslogSink struct {
	Address  string // HOST:PORT
	TLS      *tls.Config
	Hostname string // of the hub
	Dial     func(ctx context.Context, network, address string) (net.Conn, error)

	conn   net.Conn
	lost   chan struct{} // closed when the server hung up
	unsure []sent
}

// sent is what may be lost with the connection.
type sent struct {
	at    time.Time
	bytes []byte
}

// What was sent may still be lost for syslogUnsure, and the last minUnsure bytes for ever:
// a server that hangs reads nothing, and its machine acknowledges in TCP what fits into
// buffers. Ours is made small, so that both together hold less.
const (
	syslogUnsure  = 15 * time.Second
	minUnsure     = 512 << 10 // bytes
	maxUnsure     = 4 << 20   // bytes
	syslogBuffer  = 64 << 10  // bytes
	syslogTimeout = 20 * time.Second
)

// Deliver implements Sink.
func (s *SyslogSink) Deliver(ctx context.Context, b Batch) error {
	var out []byte
	for _, line := range b.Lines {
		out = s.appendMessage(out, line)
	}
	if err := s.ready(ctx); err != nil {
		return err
	}
	if err := s.write(ctx, out); err != nil {
		return err
	}
	s.remember(out)
	return nil
}

// Settle implements Settler: what was lost with a connection does not wait for news.
func (s *SyslogSink) Settle(ctx context.Context) error {
	if len(s.unsure) == 0 {
		return nil
	}
	return s.ready(ctx)
}

// ready makes a connection if there is none, and sends again what may have been lost
// with the one before.
func (s *SyslogSink) ready(ctx context.Context) error {
	if s.conn != nil {
		select {
		case <-s.lost:
			_ = s.Close()
		default:
			return nil
		}
	}
	if err := s.connect(ctx); err != nil {
		return fmt.Errorf("connect to the syslog server: %w", err)
	}
	for _, one := range s.unsure {
		if err := s.write(ctx, one.bytes); err != nil {
			return err
		}
	}
	return nil
}

// remember keeps what may have to be sent again.
func (s *SyslogSink) remember(b []byte) {
	now := time.Now()
	s.unsure = append(s.unsure, sent{now, b})
	size := 0
	for _, one := range s.unsure {
		size += len(one.bytes)
	}
	for len(s.unsure) > 1 && (size > maxUnsure || size-len(s.unsure[0].bytes) > minUnsure && now.Sub(s.unsure[0].at) > syslogUnsure) {
		size -= len(s.unsure[0].bytes)
		s.unsure = s.unsure[1:]
	}
}

func (s *SyslogSink) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syslogTimeout)
	defer cancel()
	bare, err := s.Dial(ctx, "tcp", s.Address)
	if err != nil {
		return err
	}
	if small, ok := bare.(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = small.SetWriteBuffer(syslogBuffer)
	}
	conn := tls.Client(bare, s.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		bare.Close()
		return err
	}
	s.conn, s.lost = conn, make(chan struct{})
	go func(conn net.Conn, lost chan struct{}) { // ends with the connection: see Close
		defer close(lost)
		_, _ = conn.Read(make([]byte, 1)) // a server says nothing: this is its end
	}(conn, s.lost)
	return nil
}

func (s *SyslogSink) write(ctx context.Context, b []byte) error {
	deadline := time.Now().Add(syslogTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = s.conn.SetWriteDeadline(deadline)
	if _, err := s.conn.Write(b); err != nil {
		return fmt.Errorf("write to the syslog server: %w", errors.Join(err, s.Close()))
	}
	return nil
}

// Close implements Sink.
func (s *SyslogSink) Close() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	<-s.lost
	s.conn = nil
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Priorities: facility 13, "log audit", with severity 6 (informational), or 4
// (warning) for what failed.
const (
	syslogInfo    = 13*8 + 6
	syslogWarning = 13*8 + 4

	// syslogData names our structured data. 32473 is the number that IANA reserves
	// for whoever has none of his own (RFC 5612).
	syslogData = "postern@32473"
)

// appendMessage appends an entry's message with its length before it. The text is
// the entry's line; what a server may want to filter by stands in the structured data too.
func (s *SyslogSink) appendMessage(b, line []byte) []byte {
	e, err := ParseEntry(line)
	priority := syslogInfo
	if err != nil || !e.OK {
		priority = syslogWarning
	}
	var m bytes.Buffer
	fmt.Fprintf(&m, "<%d>1 %s %s postern - %s [%s", priority, e.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		header(s.Hostname, 255), header(string(e.Action), 32), syslogData)
	actor := ""
	if e.Actor.Kind != "" {
		actor = e.Actor.String()
	}
	for _, p := range [][2]string{
		{"id", e.ID}, {"seq", strconv.FormatUint(e.Sequence, 10)}, {"organization", e.Organization}, {"actor", actor},
		{"source", e.Source}, {"agent", e.Agent}, {"target", e.Target}, {"ok", strconv.FormatBool(e.OK)}, {"code", e.Code},
	} {
		if p[1] != "" {
			fmt.Fprintf(&m, ` %s="%s"`, p[0], strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(p[1]))
		}
	}
	m.WriteString("] ")
	m.Write(line)
	b = strconv.AppendInt(b, int64(m.Len()), 10)
	b = append(b, ' ')
	return append(b, m.Bytes()...)
}

// header returns a field of a message's header: printable ASCII without spaces, or "-".
func header(s string, limit int) string {
	s = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return -1
		}
		return c
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), limit)]
}

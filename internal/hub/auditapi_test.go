package hub

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern.dev/postern/internal/audit"
)

// endless is a journal of many blocks that counts what is read of it.
type endless struct {
	audit.Journal // nil: nothing else is asked of it
	blocks        uint64
	line          []byte
	read          atomic.Int64 // bytes
}

func (j *endless) Read(_ context.Context, _ string, after uint64, maxBytes int) (all []audit.Block, err error) {
	for n := 0; n < maxBytes && after < j.blocks; n += len(j.line) {
		after++
		all = append(all, audit.Block{Position: after, Lines: j.line})
		j.read.Add(int64(len(j.line)))
	}
	return all, nil
}

// onePipe is a listener of connections that are handed to it.
type onePipe chan net.Conn

func (l onePipe) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l onePipe) Close() error   { return nil }
func (l onePipe) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowAuditReader: of a log that a reader does not take, the hub holds one piece; it
// cuts the reader after a while, and another one has all of it meanwhile.
func TestSlowAuditReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocks, size = 2000, 16 << 10
		line := append([]byte(fmt.Sprintf(`{"action":"open","organization":"acme","reason":"%0*d"}`, size, 0)), '\n')
		read := func(j *endless, conns onePipe) (res *http.Response, ended chan error) {
			l := &auditLog{Keeper: audit.NewKeeper(audit.KeeperConfig{Log: slog.New(slog.DiscardHandler)}), journal: j, readers: make(map[string]int)}
			ended = make(chan error, 1)
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				reader := &auditReader{api: &API{o: APIOptions{AuditLog: l}}, w: w, control: http.NewResponseController(w), chain: "acme"}
				ended <- reader.run(r, true)
			})}
			go func() { _ = server.Serve(conns) }()
			t.Cleanup(func() { _ = server.Close() })
			near, far := net.Pipe()
			t.Cleanup(func() { _ = near.Close() })
			conns <- far
			if _, err := io.WriteString(near, "GET / HTTP/1.1\r\nHost: hub\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(near), nil)
			if err != nil {
				t.Fatal(err)
			}
			return res, ended
		}
		slow, quick := &endless{blocks: blocks, line: line}, &endless{blocks: blocks, line: line}
		slowConns, quickConns := make(onePipe), make(onePipe)
		defer close(slowConns)
		defer close(quickConns)
		begin := time.Now()
		_, ended := read(slow, slowConns)
		res, others := read(quick, quickConns)
		if n, err := io.CopyN(io.Discard, res.Body, int64(blocks*len(line))); err != nil {
			t.Errorf("the other reader had %d bytes of %d: %v", n, blocks*len(line), err)
		}
		go func() { _, _ = io.Copy(io.Discard, res.Body) }() // it goes on, with the signs of life
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the other reader waited %s", took)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the slow reader ended with %v", err)
		}
		if took := time.Since(begin); took < auditPatience || took > auditPatience+time.Second {
			t.Errorf("the slow reader was cut after %s, want %s", took, auditPatience)
		}
		if n := slow.read.Load(); n > 2*auditRead {
			t.Errorf("%d bytes were read for somebody who takes none", n)
		}
		select {
		case err := <-others:
			t.Errorf("the other reader ended with %v", err)
		default:
		}
	})
}

// TestAuditReadersAreBounded: readers of one log are bounded, and of all; each place that
// is left is free again.
func TestAuditReadersAreBounded(t *testing.T) {
	t.Parallel()
	l := &auditLog{readers: make(map[string]int)}
	var leave []func()
	enter := func(chain string) bool {
		out, err := l.enter(chain)
		if err == nil {
			leave = append(leave, out)
		}
		return err == nil
	}
	for range maxAuditOfOne {
		if !enter("acme") {
			t.Fatal("a reader is refused")
		}
	}
	if enter("acme") {
		t.Error("one log has too many readers")
	}
	for i := maxAuditOfOne; i < maxAuditReaders; i++ {
		if !enter(fmt.Sprint("org-", i)) {
			t.Fatalf("reader %d of other logs is refused", i)
		}
	}
	if enter("late") {
		t.Error("the hub has too many readers")
	}
	for _, out := range leave {
		out()
	}
	if l.reading != 0 || len(l.readers) != 0 {
		t.Errorf("%d readers are left, of %v", l.reading, l.readers)
	}
}

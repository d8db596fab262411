package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// bridgeBuffer is small, for a hub has two of them per connected party.
const bridgeBuffer = 4 << 10

// Serve lets the party behind conn, which has passed the outer TLS, speak with
// the server, until either side ends or ctx does. It closes conn. The error says
// why it ended, nil when one side just closed.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	server, err := s.InProcess()
	if err != nil {
		return err
	}
	end := sync.OnceFunc(func() { _ = conn.Close(); _ = server.Close() })
	defer end()
	defer context.AfterFunc(ctx, end)()
	var wg sync.WaitGroup
	var up error
	wg.Go(func() {
		defer end() // the NATS protocol knows no half-closed connections
		up = bridge(server, conn)
	})
	down := bridge(conn, server)
	end()
	wg.Wait()
	if err := errors.Join(up, down); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve bus connection: %w", err)
	}
	return nil
}

func bridge(dst, src net.Conn) error {
	_, err := io.CopyBuffer(writerOnly{dst}, readerOnly{src}, make([]byte, bridgeBuffer))
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) {
		return nil // by the other direction's end
	}
	return err
}

// These hide ReadFrom and WriteTo, which would bring larger buffers.
type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)

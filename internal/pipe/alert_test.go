package pipe_test

import (
	"io"
	"net"
	"sync"
	"testing"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// TestReaderSendsAnAlert has somebody in the middle put in a record while the
// pipe is being written to: crypto/tls then sends an alert from the goroutine that
// reads. The race detector watches that the two keep out of each other's way.
func TestReaderSendsAnAlert(t *testing.T) {
	w := pipetest.NewWorld(t)
	for range 10 {
		var bare net.Conn
		client, server := w.Pair(t, func(addr string) (c net.Conn, err error) {
			bare, err = net.Dial("tcp", addr)
			return bare, err
		})
		var wg sync.WaitGroup
		wg.Go(func() { // takes what the server sends, until the end
			buf := make([]byte, wire.MaxPayloadLen)
			for {
				h, err := client.Next()
				if err != nil {
					return
				}
				for n := h.Length; n > 0; {
					k, err := client.Read(buf[:n])
					if err != nil {
						return
					}
					n -= k
				}
			}
		})
		sent := make(chan struct{})
		wg.Go(func() {
			frame := wire.Append(nil, wire.FrameData, 0, 0, make([]byte, 20<<10))
			once := sync.OnceFunc(func() { close(sent) })
			defer once()
			for {
				if _, err := server.Send(frame); err != nil {
					return
				}
				once()
			}
		})
		<-sent
		if _, err := bare.Write([]byte{23, 3, 3, 0, 5, 1, 2, 3, 4, 5}); err != nil { // a record that is nobody's
			t.Fatal(err)
		}
		if _, err := server.Next(); err == nil || err == io.EOF || server.Dead() == nil {
			t.Errorf("the reader got %v; the pipe: %v", err, server.Dead())
		}
		wg.Wait()
	}
}

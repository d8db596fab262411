package harness

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Serve runs a TCP server on loopback that hands each connection to handle on a
// goroutine of its own. When the test ends, it closes all of them and waits.
func Serve(t testing.TB, handle func(conn *net.TCPConn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		conns = map[net.Conn]bool{}
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			wg.Go(func() {
				handle(conn.(*net.TCPConn))
				conn.Close()
				mu.Lock()
				delete(conns, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// Echo sends back what it gets, to the end.
func Echo(conn *net.TCPConn) {
	_, _ = io.Copy(conn, conn)
	_ = conn.CloseWrite()
}

// Sink reads what it gets, to the end, and answers with how much it was.
func Sink(conn *net.TCPConn) {
	n, err := io.Copy(io.Discard, conn)
	if err == nil {
		fmt.Fprintf(conn, "%d", n)
	}
}

// Flood sends until nobody listens any more.
func Flood(conn *net.TCPConn) {
	block := make([]byte, 64<<10)
	for {
		if _, err := conn.Write(block); err != nil {
			return
		}
	}
}

// Hold keeps a connection open and reads nothing but its end.
func Hold(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) }

// SendRandom writes size bytes that no two blocks of which are alike, and
// returns their SHA-256.
func SendRandom(w io.Writer, size int64, seed uint64) (string, error) {
	block := make([]byte, 256<<10)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(block)
	sum := sha256.New()
	for number := uint64(0); size > 0; number++ {
		// A block that came twice, not at all or too early changes the sum.
		binary.LittleEndian.PutUint64(block, number)
		part := block[:min(int64(len(block)), size)]
		sum.Write(part)
		if _, err := w.Write(part); err != nil {
			return "", err
		}
		size -= int64(len(part))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// ReceiveSum reads to the end and returns how many bytes came and their SHA-256.
func ReceiveSum(r io.Reader) (int64, string, error) {
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return n, hex.EncodeToString(sum.Sum(nil)), err
}

// Exchange is what one side of a transfer both ways saw.
type Exchange struct {
	Sent, Received string // SHA-256
	Bytes          int64  // received
	Err            error
}

// Both sends size bytes, half-closes, and reads to the end at the same time.
func Both(conn *net.TCPConn, size int64, seed uint64) Exchange {
	var (
		x       Exchange
		sendErr error
		wg      sync.WaitGroup
	)
	wg.Go(func() {
		if x.Sent, sendErr = SendRandom(conn, size, seed); sendErr == nil {
			sendErr = conn.CloseWrite()
		}
	})
	x.Bytes, x.Received, x.Err = ReceiveSum(conn)
	wg.Wait()
	if x.Err == nil {
		x.Err = sendErr
	}
	return x
}

// Dial connects to a loopback address, for the length of the test.
func Dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// PingEcho sends a line through an echo target at addr and waits for it.
func PingEcho(addr string, timeout time.Duration) error {
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	want := fmt.Sprintf("echo %d\n", rand.Uint64())
	if _, err := io.WriteString(conn, want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("echo is %q, want %q", got, want)
	}
	return nil
}

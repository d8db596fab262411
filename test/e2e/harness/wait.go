package harness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// permanent is an error that waiting will not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that ends Eventually at once.
func Permanent(err error) error { return permanent{err} }

// Eventually calls check until it returns nil, for as long as timeout. The last
// error ends the test.
func Eventually(t testing.TB, timeout time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(begin)
		}
		if _, ok := errors.AsType[permanent](err); ok {
			t.Fatalf("%s: %v", what, err)
		}
		if time.Since(begin) > timeout {
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
		time.Sleep(30 * time.Millisecond) // other processes cannot tell us
	}
}

// ports hands out each port once per run.
var ports struct {
	mu   sync.Mutex
	used map[int]bool
}

// FreePort returns a loopback port that nothing listens on, below the range
// from which the kernel takes ports for outgoing connections, so that it stays
// free until its user comes.
func FreePort(t testing.TB) int {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.used == nil {
		ports.used = map[int]bool{}
	}
	for range 1000 {
		port := 10000 + rand.IntN(22000)
		if ports.used[port] {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		l.Close()
		ports.used[port] = true
		return port
	}
	t.Fatal("no free port found")
	return 0
}

// FreeAddr returns 127.0.0.1 with a free port.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// WaitTCP waits until something accepts connections at addr.
func WaitTCP(t testing.TB, addr string, p *Process, timeout time.Duration) {
	t.Helper()
	Eventually(t, timeout, p.Name+" listens on "+addr, func() error {
		if !p.Running() {
			return Permanent(fmt.Errorf("it ended: %w", p.err))
		}
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

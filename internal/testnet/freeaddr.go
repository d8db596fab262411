package testnet

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreeAddr returns an address of 127.0.0.1 at which nobody listens, for a server that
// is told where to listen, or is stopped and started again. It is the caller's until
// the test ends; see Reserve.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addr, release, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return addr
}

// Reserve is FreeAddr for a caller that has no test yet. The port is none of those
// that the system gives by itself to connections and to listeners of port 0, and no
// other caller of Reserve gets it before release is called, in no process: the UDP
// port of that number is held meanwhile, which leaves the TCP port free.
func Reserve() (addr string, release func(), err error) {
	for range 1000 {
		addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.N(22000)))
		held, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue // somebody's
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			_ = held.Close()
			continue
		}
		_ = ln.Close()
		return addr, func() { _ = held.Close() }, nil
	}
	return "", nil, errors.New("testnet: there is no free port")
}

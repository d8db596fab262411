//go:build linux

package e2e_test

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
	"postern.dev/postern/test/kube/sockets"
)

// testPrivate shows that the tunnel is the only way in, so that the other tests mean something.
func testPrivate(t *testing.T, c *cluster.Cluster) {
	t.Run("the name does not resolve outside", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if addresses, err := net.DefaultResolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local"); err == nil {
			t.Errorf("it resolves to %v", addresses)
		}
	})
	t.Run("nothing inside can be reached", func(t *testing.T) {
		for _, port := range []int{cluster.APIPort, 10250, 53} {
			address := net.JoinHostPort(cluster.NodeIP, strconv.Itoa(port))
			// It is there, for those inside.
			inside, err := c.DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Errorf("from inside: %v", err)
				continue
			}
			inside.Close()
			if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
				conn.Close()
				t.Errorf("%s accepts connections from outside", address)
			}
		}
	})
	t.Run("only the host can be reached from inside", func(t *testing.T) {
		conn, err := c.DialContext(t.Context(), "tcp", hubAddr)
		if err != nil {
			t.Fatalf("the hub cannot be reached from inside: %v", err)
		}
		conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if conn, err := c.DialContext(ctx, "tcp", "192.0.2.1:443"); err == nil {
			conn.Close()
			t.Error("an address outside can be reached from inside")
		}
	})
}

// testSockets looks at every socket that the agent has while a stream is open: none listens, and
// those that leave the private network all go to the hub's one port.
func testSockets(t *testing.T, tunnel *tunnel, kubectl client) {
	logs := kubectl.follow(t, "logs", "-f", "clock", "--tail=1")
	logs.next(t)
	list, err := sockets.Of(tunnel.agent.Pid())
	if err != nil {
		t.Fatal(err)
	}
	private := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix(cluster.NodeIP + "/32"),
	}
	hub := netip.MustParseAddrPort(hubAddr)
	outward, inward := 0, 0
	for _, s := range list {
		switch {
		case s.Listening:
			t.Errorf("the agent listens: %s", s)
		case s.Network == "unix":
		case s.Remote == hub:
			outward++
		case !s.Remote.IsValid() || !contains(private, s.Remote.Addr()):
			t.Errorf("the agent has a socket that is neither to the hub nor inside: %s", s)
		default:
			inward++
		}
	}
	t.Logf("the agent has %d connections to the hub, %d to targets inside, and no other socket but %d of unix", outward, inward, len(list)-outward-inward)
	if outward == 0 || inward == 0 {
		t.Errorf("an agent with an open stream has %d connections to the hub and %d to targets", outward, inward)
	}
}

func contains(list []netip.Prefix, addr netip.Addr) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

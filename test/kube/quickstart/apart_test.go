//go:build linux

package quickstart_test

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

// apart looks that the clusters are apart, so that the other tests mean something: each reaches the
// host's one address, and neither the other, and the host reaches none.
func (w *world) apart(t *testing.T) {
	api := strconv.Itoa(cluster.APIPort)
	for from, to := range map[*cluster.Cluster]*cluster.Cluster{w.pair.A: w.pair.B, w.pair.B: w.pair.A} {
		conn, err := from.DialContext(limit(t, time.Minute), "tcp", w.hubAddr())
		if err != nil {
			t.Errorf("the host cannot be reached: %v", err)
			continue
		}
		conn.Close()
		memory, err := from.Memory()
		if err != nil {
			t.Error(err)
		}
		t.Logf("the cluster of %s takes %d MiB", from.NodeIP(), memory>>20)
		for name, dial := range map[string]func(context.Context, string, string) (net.Conn, error){
			"the other cluster": from.DialContext, "the host": (&net.Dialer{}).DialContext,
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if conn, err := dial(ctx, "tcp", net.JoinHostPort(to.NodeIP(), api)); err == nil {
				conn.Close()
				t.Errorf("%s can be reached from %s", to.NodeIP(), name)
			}
			cancel()
		}
	}
}

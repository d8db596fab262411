//go:build !linux

package relay

import (
	"net"
	"sync/atomic"
)

// splicer moves bytes between sockets by way of user space.
type splicer struct{}

func (*splicer) copy(dst, src net.Conn, moved *atomic.Int64) error { return copyPlain(dst, src, moved) }

func (*splicer) close() {}

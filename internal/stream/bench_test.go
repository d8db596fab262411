package stream_test

import (
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern.dev/postern/internal/pipe/pipetest"
	"postern.dev/postern/internal/wire"
)

// cpu returns the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCarry moves a megabyte per iteration from a target to a client, through
// a stream and local sockets at both of its ends.
func BenchmarkCarry(b *testing.B) {
	w := newWorld(b)
	c, s := w.open(b)
	near, nearLocal := pipetest.TCPPair(b, nil)
	far, farLocal := pipetest.TCPPair(b, nil)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.Carry(nearLocal, nil, wire.LegClient) })
	wg.Go(func() { _, _ = s.Carry(farLocal, nil, wire.LegTarget) })
	chunk := make([]byte, 1<<20)
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	var send sync.WaitGroup
	send.Go(func() {
		for range b.N {
			if _, err := far.Write(chunk); err != nil {
				b.Error(err)
				return
			}
		}
		_ = far.(*net.TCPConn).CloseWrite()
	})
	for {
		if _, err := near.Read(buf); err == io.EOF {
			break
		} else if err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e3, "cpu-µs/MB")
	_ = near.Close()
	_ = far.Close()
	send.Wait()
	wg.Wait()
}

// BenchmarkEcho sends 64 bytes to an echoing target and back per iteration.
func BenchmarkEcho(b *testing.B) {
	w := newWorld(b)
	c, s := w.open(b)
	near, nearLocal := pipetest.TCPPair(b, nil)
	far, farLocal := pipetest.TCPPair(b, nil)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.Carry(nearLocal, nil, wire.LegClient) })
	wg.Go(func() { _, _ = s.Carry(farLocal, nil, wire.LegTarget) })
	wg.Go(func() { _, _ = io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{far}); _ = far.Close() })
	msg := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	for range b.N {
		if _, err := near.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(near, msg); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e3, "cpu-µs/op")
	_ = near.Close()
	wg.Wait()
}

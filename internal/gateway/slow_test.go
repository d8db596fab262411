package gateway

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestAttackSlowBodies: of two thousand requests whose bodies never end, those of
// strangers are refused without waiting for them, those of one caller get no further
// than his limit allows, and others are served meanwhile.
func TestAttackSlowBodies(t *testing.T) {
	t.Parallel()
	const (
		conns, each = 20, 100 // requests at once on a connection of HTTP/2
		limit       = 40
	)
	w := newWorld(t, func(c *Config) { c.Failed, c.Limits, c.Flood = nil, Limits{Short: limit}, nil })
	var arrived atomic.Int64
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			_, _ = io.WriteString(rw, "hello")
			return
		}
		arrived.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var statuses sync.Map // how often, by status
	var sending sync.WaitGroup
	for i := range conns {
		token := "token-of-eve"
		if i%2 == 0 {
			token = "none"
		}
		sending.Go(func() { slowBodies(t, w.addr, token, each, limit, &statuses) })
	}
	sending.Wait()
	runtime.ReadMemStats(&after)
	count := func(status string) int64 {
		n, ok := statuses.Load(status)
		if !ok {
			return 0
		}
		return n.(*atomic.Int64).Load()
	}
	if refused, limited := count("401"), count("429"); refused != conns*each/2 || limited < conns/2*(each-limit) {
		t.Errorf("%d strangers are refused, %d of one caller's requests", refused, limited)
	}
	if n := arrived.Load(); n > limit {
		t.Errorf("%d requests of one caller got to the agent, %d at most may", n, limit)
	}
	grown := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)
	t.Logf("%d requests: %d got to the agent; %d MiB more memory", conns*each, arrived.Load(), grown>>20)
	if grown > conns*each*32<<10 {
		t.Errorf("%d bytes of memory", grown)
	}
	if res, body := w.do(w.request("ann", http.MethodGet, "/plant/api", nil)); res.StatusCode != http.StatusOK || body != "hello" {
		t.Errorf("meanwhile: %s %s", res.Status, body)
	}
}

// slowBodies sends the headers of some requests over a connection, and one byte of each
// body, and waits until all but a few are answered: of a stranger's, all. The connection
// stays open until the test ends.
func slowBodies(t *testing.T, addr, token string, requests, few int, statuses *sync.Map) {
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(3 * patience))
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = framer.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := range requests {
		block.Reset()
		for _, f := range [][2]string{
			{":method", "POST"}, {":scheme", "https"}, {":authority", "hub"}, {":path", "/plant/api"}, {"authorization", "Bearer " + token}, {"content-length", "1000000"},
		} {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		id := uint32(2*i + 1)
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
		_ = framer.WriteData(id, false, []byte("x"))
	}
	go func() { _, _ = conn.Write(out.Bytes()) }()
	if strings.HasPrefix(token, "none") {
		few = 0
	}
	for answered := 0; answered < requests-few; {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Errorf("after %d answers: %v", answered, err)
			return
		}
		if f, ok := frame.(*http2.MetaHeadersFrame); ok {
			answered++
			n, _ := statuses.LoadOrStore(f.PseudoValue("status"), new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
		}
	}
}

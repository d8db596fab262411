package webconn

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// BenchmarkWebSocket moves bytes inside a WebSocket over TLS.
func BenchmarkWebSocket(b *testing.B) {
	for _, name := range []string{"to the server", "to the client"} {
		b.Run(name, func(b *testing.B) {
			accepted := make(chan *Conn, 1)
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := Accept(w, r)
				if err != nil {
					b.Error(err)
					return
				}
				accepted <- c
				c.Wait()
			}))
			defer s.Close()
			u, _ := url.Parse(s.URL)
			ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
			defer cancel()
			raw, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
			if err != nil {
				b.Fatal(err)
			}
			client, err := Client(ctx, raw, u)
			if err != nil {
				b.Fatal(err)
			}
			server := <-accepted
			from, to := client, server
			if name == "to the client" {
				from, to = server, client
			}
			block := make([]byte, 64<<10)
			b.SetBytes(int64(len(block)))
			go func() {
				for {
					if _, err := from.Write(block); err != nil {
						return
					}
				}
			}()
			for b.Loop() {
				if _, err := io.ReadFull(to, block); err != nil {
					b.Fatal(err)
				}
			}
			_ = client.Close()
			_ = server.Close()
			server.Wait()
		})
	}
}

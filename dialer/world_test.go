package dialer_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"postern.dev/postern/dialer"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/testnet/world"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begin starts a hub, its agent office, and what stands behind it.
func begin() (*office, error) {
	return beginWith(nil)
}

func beginWith(change func(*config.Hub)) (*office, error) {
	w, err := world.New(change)
	if err != nil {
		return nil, err
	}
	page := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprintf(rw, "hello from %s\n", r.Host) })
	o := &office{
		World:   w,
		Options: dialer.Options{ConnectURL: w.ConnectURL, CAFile: w.CAFile, Token: w.Token, Name: "program", Agent: world.Agent},
		Page:    httptest.NewServer(page), Secure: httptest.NewTLSServer(page),
	}
	if o.Echo, err = o.serveEcho(); err != nil {
		o.End()
		return nil, err
	}
	return o, nil
}

// office is a private network with its agent.
type office struct {
	*world.World
	Options      dialer.Options   // good for New
	Page, Secure *httptest.Server // HTTP and HTTPS
	Echo         string           // HOST:PORT of what sends back what it gets

	listener net.Listener
	serving  sync.WaitGroup
}

// End ends everything.
func (o *office) End() {
	o.Page.Close()
	o.Secure.Close()
	if o.listener != nil {
		o.listener.Close()
	}
	o.World.Close()
	o.serving.Wait()
}

func (o *office) serveEcho() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	o.listener = ln
	o.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o.serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	return ln.Addr().String(), nil
}

// start starts an office for a test.
func start(t *testing.T, change func(*config.Hub)) *office {
	t.Helper()
	o, err := beginWith(change)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.End)
	return o
}

// dial makes a Dialer for a test.
func dial(t *testing.T, o dialer.Options) *dialer.Dialer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), world.Patience)
	defer cancel()
	d, err := dialer.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

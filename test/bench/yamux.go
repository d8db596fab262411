package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// yamuxConfig gives the multiplexer the largest window in use by a well-known
// tunnel, 6 MiB, and room for the opens and idle streams of the figures.
func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.MaxStreamWindowSize = 6 << 20
	c.AcceptBacklog = 4096
	c.ConnectionWriteTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}

// yamuxStream gives a stream's Close, which ends only the sending side, its name.
type yamuxStream struct{ *yamux.Stream }

func (s yamuxStream) CloseWrite() error { return s.Stream.Close() }

// runYamuxHub waits for one agent on its first address and serves clients on its
// second: each connection becomes a stream to the agent.
func runYamuxHub(f roleFlags) ([]string, error) {
	conf, err := serverTLS(f.cert)
	if err != nil {
		return nil, err
	}
	var once sync.Once
	var session *yamux.Session
	connected := make(chan struct{})
	agents, err := serve(func(c *net.TCPConn) {
		s, err := yamux.Client(tls.Server(c, conf), yamuxConfig())
		if err != nil {
			fmt.Fprintln(os.Stderr, "yamux:", err)
			return
		}
		once.Do(func() {
			session = s
			close(connected)
		})
	})
	if err != nil {
		return nil, err
	}
	clients, err := serve(func(c *net.TCPConn) {
		<-connected
		s, err := session.OpenStream()
		if err != nil {
			_ = c.Close()
			return
		}
		join(c, yamuxStream{s}, pump)
	})
	return append(agents, clients...), err
}

// runYamuxAgent dials the hub and the target for each stream.
func runYamuxAgent(f roleFlags) ([]string, error) {
	conf, err := clientTLS(f.cert)
	if err != nil {
		return nil, err
	}
	c, err := tls.Dial("tcp", f.hub, conf)
	if err != nil {
		return nil, err
	}
	session, err := yamux.Server(c, yamuxConfig())
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			s, err := session.AcceptStream()
			if err != nil {
				fmt.Fprintln(os.Stderr, "yamux:", err)
				return
			}
			go func() {
				to, err := net.Dial("tcp", f.to)
				if err != nil {
					_ = s.Close()
					return
				}
				join(to.(*net.TCPConn), yamuxStream{s}, pump)
			}()
		}
	}()
	return []string{"connected"}, nil
}

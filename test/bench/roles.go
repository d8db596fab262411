package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/testnet"
)

// roleCommand is the hidden sub-command under which the bench runs its roles.
const roleCommand = "role"

// roleFlags are the flags of all roles; each uses what it needs.
type roleFlags struct {
	to     string        // where to forward to
	hub    string        // yamux-agent: where the hub waits for it
	cert   string        // PEM file with certificate and key; clients trust it
	delay  time.Duration // link: one way
	rate   int64         // link: bytes per second
	shared bool          // link: one rate for all connections
}

// runRole runs the role named by the first argument until standard input ends.
func runRole(args []string) error {
	roles := map[string]func(roleFlags) ([]string, error){
		"target":      runTarget,
		"relay":       runRelay,
		"tls-in":      runTLSIn,
		"tls-out":     runTLSOut,
		"yamux-hub":   runYamuxHub,
		"yamux-agent": runYamuxAgent,
		"link":        runLink,
		"api":         runAPI,
	}
	if len(args) == 0 || roles[args[0]] == nil {
		return errors.New("no such role")
	}
	var f roleFlags
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.StringVar(&f.to, "to", "", "address to forward to")
	fs.StringVar(&f.hub, "hub", "", "address of the hub")
	fs.StringVar(&f.cert, "cert", "", "PEM file with certificate and key")
	fs.DurationVar(&f.delay, "delay", 0, "one-way delay")
	fs.Int64Var(&f.rate, "rate", 0, "bytes per second")
	fs.BoolVar(&f.shared, "shared", false, "one rate for all connections")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	addrs, err := roles[args[0]](f)
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addrs, " "))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// serve accepts on a free loopback port and returns its address.
func serve(handle func(*net.TCPConn)) ([]string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				fmt.Fprintln(os.Stderr, "accept:", err)
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go handle(c.(*net.TCPConn))
		}
	}()
	return []string{ln.Addr().String()}, nil
}

// halfCloser is a connection whose sending side can be ended by itself.
type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// join copies both ways between two connections, passing on half-closes, and
// closes both at the end. An error of either direction ends both.
func join(a, b halfCloser, pump func(dst, src halfCloser) error) {
	var wg sync.WaitGroup
	one := func(dst, src halfCloser) {
		if err := pump(dst, src); err != nil {
			_ = a.Close()
			_ = b.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	wg.Go(func() { one(a, b) })
	one(b, a)
	wg.Wait()
	_ = a.Close()
	_ = b.Close()
}

// splice lets the kernel move the bytes where both ends are TCP.
func splice(dst, src halfCloser) error {
	_, err := io.Copy(dst, src)
	return err
}

// buffers are for roles whose bytes pass through the process. 64 KiB is beyond
// what makes a difference to any of them.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// pump copies through a buffer of 64 KiB. io.Copy would let *net.TCPConn choose
// its own, of 32.
func pump(dst, src halfCloser) error {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// runRelay is a plain forwarder.
func runRelay(f roleFlags) ([]string, error) {
	return serve(func(c *net.TCPConn) {
		to, err := net.Dial("tcp", f.to)
		if err != nil {
			_ = c.Close()
			return
		}
		join(c, to.(*net.TCPConn), splice)
	})
}

// runTLSIn is the client's half of the TLS hop: TCP in, TLS out.
func runTLSIn(f roleFlags) ([]string, error) {
	conf, err := clientTLS(f.cert)
	if err != nil {
		return nil, err
	}
	return serve(func(c *net.TCPConn) {
		to, err := tls.Dial("tcp", f.to, conf)
		if err != nil {
			_ = c.Close()
			return
		}
		join(c, to, pump)
	})
}

// runTLSOut is the target's half of the TLS hop: TLS in, TCP out.
func runTLSOut(f roleFlags) ([]string, error) {
	conf, err := serverTLS(f.cert)
	if err != nil {
		return nil, err
	}
	return serve(func(c *net.TCPConn) {
		in := tls.Server(c, conf)
		to, err := net.Dial("tcp", f.to)
		if err != nil {
			_ = in.Close()
			return
		}
		join(in, to.(*net.TCPConn), pump)
	})
}

// runLink is a path with delay and rate, see testnet.Link.
func runLink(f roleFlags) ([]string, error) {
	l, err := testnet.Listen(testnet.Config{Target: f.to, Delay: f.delay, Rate: f.rate, Shared: f.shared})
	if err != nil {
		return nil, err
	}
	return []string{l.Addr()}, nil
}

// clientTLS trusts exactly the certificate in the file.
func clientTLS(file string) (*tls.Config, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in " + file)
	}
	return &tls.Config{
		RootCAs: pool, ServerName: certName, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true,
	}, nil
}

func serverTLS(file string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}, nil
}

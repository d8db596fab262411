package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

func dialTCP(ctx context.Context, addr string) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func dialPlain(addr string) dialer {
	return func(ctx context.Context) (*net.TCPConn, error) { return dialTCP(ctx, addr) }
}

// dialConnect asks an HTTP proxy for the target with CONNECT.
func dialConnect(proxy, target string) dialer {
	return func(ctx context.Context) (*net.TCPConn, error) {
		c, err := dialTCP(ctx, proxy)
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := connect(c, target); err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, c.SetDeadline(time.Time{})
	}
}

func connect(c net.Conn, target string) error {
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("proxy answered %s: %s", resp.Status, text)
	}
	if r.Buffered() > 0 {
		return errors.New("proxy sent bytes after its answer before the target was asked anything")
	}
	return nil
}

// dialSOCKS asks a SOCKS5 proxy for the target, an IPv4 address and port.
func dialSOCKS(proxy, target string) dialer {
	return func(ctx context.Context) (*net.TCPConn, error) {
		c, err := dialTCP(ctx, proxy)
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := socks(c, target); err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, c.SetDeadline(time.Time{})
	}
}

func socks(c net.Conn, target string) error {
	addr, err := net.ResolveTCPAddr("tcp4", target)
	if err != nil {
		return err
	}
	if _, err := c.Write([]byte{5, 1, 0}); err != nil { // version 5, one method: none
		return err
	}
	var answer [10]byte
	if _, err := io.ReadFull(c, answer[:2]); err != nil {
		return err
	}
	if answer[1] != 0 {
		return fmt.Errorf("SOCKS proxy wants method %d", answer[1])
	}
	request := append([]byte{5, 1, 0, 1}, addr.IP.To4()...) // connect to an IPv4 address
	request = binary.BigEndian.AppendUint16(request, uint16(addr.Port))
	if _, err := c.Write(request); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, answer[:]); err != nil { // bound to an IPv4 address
		return err
	}
	if answer[1] != 0 || answer[3] != 1 {
		return fmt.Errorf("SOCKS proxy answered %x", answer)
	}
	return nil
}

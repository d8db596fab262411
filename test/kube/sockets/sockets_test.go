//go:build linux

package sockets

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOf(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	packet, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		packet, err = net.ListenPacket("udp", "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()

	list, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(listener.Addr().String())
	for what, is := range map[string]func(Socket) bool{
		"listener":      func(s Socket) bool { return s.Network == "tcp" && s.Listening && s.Local == address },
		"connection":    func(s Socket) bool { return s.Network == "tcp" && !s.Listening && s.Remote == address },
		"UDP socket":    func(s Socket) bool { return s.Listening && s.Local.String() == packet.LocalAddr().String() },
		"unix listener": func(s Socket) bool { return s.Network == "unix" && s.Listening },
	} {
		if !slices.ContainsFunc(list, is) {
			t.Errorf("the %s is not in %v", what, list)
		}
	}
}

func TestParseAddr(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:0016":                         "127.0.0.1:22",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"0000000000000000FFFF00000200A8C0:0001": "192.168.0.2:1",
	} {
		if got, err := parseAddr(text); err != nil || got.String() != want {
			t.Errorf("parseAddr(%s) = %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0100007F", "01:1", "0100007F:zz", "0100007F00:1"} {
		if got, err := parseAddr(text); err == nil {
			t.Errorf("parseAddr(%q) = %s", text, got)
		}
	}
}

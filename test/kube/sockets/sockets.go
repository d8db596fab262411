//go:build linux

// Package sockets lists the sockets of a process, from /proc and so without its help.
package sockets

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Socket is one socket of a process.
type Socket struct {
	// Network is tcp, tcp6, udp, udp6 or unix.
	Network string
	// Listening tells that it accepts connections, or for UDP that it takes datagrams of anyone.
	Listening bool
	// Local and Remote are its ends; they are not valid for unix.
	Local, Remote netip.AddrPort
}

// String is one line for people.
func (s Socket) String() string {
	if s.Network == "unix" {
		return fmt.Sprintf("unix, listening: %t", s.Listening)
	}
	return fmt.Sprintf("%s %s to %s, listening: %t", s.Network, s.Local, s.Remote, s.Listening)
}

const (
	stateListen = 0x0a
	stateClosed = 0x07 // of UDP: not connected
	acceptFlag  = 1 << 16
)

// Of lists the sockets that a process holds.
func Of(pid int) ([]Socket, error) {
	root := filepath.Join("/proc", strconv.Itoa(pid))
	inodes, err := inodesOf(filepath.Join(root, "fd"))
	if err != nil {
		return nil, fmt.Errorf("list the descriptors of process %d: %w", pid, err)
	}
	var all []Socket
	for _, network := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		found, err := table(filepath.Join(root, "net", network), network, inodes)
		if err != nil {
			return nil, fmt.Errorf("list the %s sockets of process %d: %w", network, pid, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// inodesOf collects the sockets among the descriptors.
func inodesOf(dir string) (map[string]bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	inodes := make(map[string]bool)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if inode, found := strings.CutPrefix(target, "socket:["); found {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes, nil
}

func table(name, network string, inodes map[string]bool) ([]Socket, error) {
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return nil, nil // a kernel without IPv6
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parse(f, network, inodes)
}

// parse reads a table of the kernel's and keeps the sockets with the given inodes.
func parse(r io.Reader, network string, inodes map[string]bool) ([]Socket, error) {
	var found []Socket
	lines := bufio.NewScanner(r)
	lines.Scan() // the heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if network == "unix" {
			// Num RefCount Protocol Flags Type St Inode [Path]
			if len(fields) < 7 || !inodes[fields[6]] {
				continue
			}
			flags, err := strconv.ParseUint(fields[3], 16, 32)
			if err != nil {
				return nil, fmt.Errorf("flags of %q: %w", lines.Text(), err)
			}
			found = append(found, Socket{Network: network, Listening: flags&acceptFlag != 0})
			continue
		}
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
		if len(fields) < 10 || !inodes[fields[9]] {
			continue
		}
		s, err := parseInternet(network, fields)
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", lines.Text(), err)
		}
		found = append(found, s)
	}
	return found, lines.Err()
}

func parseInternet(network string, fields []string) (Socket, error) {
	local, err := parseAddr(fields[1])
	if err != nil {
		return Socket{}, err
	}
	remote, err := parseAddr(fields[2])
	if err != nil {
		return Socket{}, err
	}
	state, err := strconv.ParseUint(fields[3], 16, 8)
	if err != nil {
		return Socket{}, err
	}
	listening := state == stateListen
	if strings.HasPrefix(network, "udp") {
		listening = state == stateClosed
	}
	return Socket{Network: network, Listening: listening, Local: local, Remote: remote}, nil
}

// parseAddr reads an address as the kernel prints it: 32-bit words in the machine's byte order.
func parseAddr(text string) (netip.AddrPort, error) {
	host, port, found := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if !found || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}

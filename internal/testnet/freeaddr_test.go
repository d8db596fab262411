package testnet_test

import (
	"net"
	"testing"

	"postern.dev/postern/internal/testnet"
)

// TestFreeAddr: an address can be listened on again and again, and is nobody else's meanwhile.
func TestFreeAddr(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		addr := testnet.FreeAddr(t)
		if seen[addr] {
			t.Fatalf("%s twice", addr)
		}
		seen[addr] = true
		for range 2 {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			ln.Close()
		}
	}
}

package testnet_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"postern.dev/postern/internal/testnet"
)

func TestPairIsAConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		a, b := testnet.Pair(64 << 10)
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestPairHalfCloses(t *testing.T) {
	a, b := testnet.Pair(16)
	if _, err := a.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "ask" {
		t.Fatalf("read %q, %v", got, err)
	}
	if _, err := b.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestPairBlocksUntilReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := testnet.Pair(16)
		b.SetReadBlock(true)
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := b.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("blocked read returned %v, want a time-out", err)
		}
		if err := b.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		b.SetReadBlock(false)
		if n, err := b.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatalf("released read returned %d, %v", n, err)
		}

		a.SetWriteBlock(true)
		wrote := make(chan error, 1)
		go func() {
			_, err := a.Write([]byte("y"))
			wrote <- err
		}()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Fatalf("blocked write returned %v", err)
		default:
		}
		a.SetWriteBlock(false)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
	})
}

func TestPairResetFailsBothEnds(t *testing.T) {
	a, b := testnet.Pair(16)
	if _, err := a.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	a.Reset()
	if _, err := b.Read(make([]byte, 8)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after a reset: %v, want an error that is not EOF", err)
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("write after a reset succeeded")
	}
}

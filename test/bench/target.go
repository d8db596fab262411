package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

// What a client asks of the target with its first byte.
const (
	askDownload = 'D' // send until the client half-closes
	askUpload   = 'U' // receive until the client half-closes, then report
	askEcho     = 'E' // send back what comes
	askOpen     = 'O' // send back this byte, then wait for the end
	askOnce     = 'C' // send back this byte and close
)

// reportSize is the length of the answer to askUpload: bytes and nanoseconds
// from the first to the last read, both 8 bytes in big-endian order. The bytes
// of the first read are not counted, since their time is not.
const reportSize = 16

// runTarget is what all contenders reach: the same process, so the same cost.
func runTarget(roleFlags) ([]string, error) {
	zeros := make([]byte, 256<<10)
	return serve(func(c *net.TCPConn) {
		defer c.Close()
		ask := make([]byte, 1)
		if _, err := io.ReadFull(c, ask); err != nil {
			return
		}
		switch ask[0] {
		case askDownload:
			ended := make(chan struct{})
			go func() {
				_, _ = io.Copy(io.Discard, c)
				close(ended)
			}()
			for {
				select {
				case <-ended:
					return
				default:
				}
				if _, err := c.Write(zeros); err != nil {
					return
				}
			}
		case askUpload:
			receiveUpload(c)
		case askEcho:
			_, _ = io.Copy(c, struct{ io.Reader }{c}) // a loop of Read and Write: splice costs more for 64 bytes
		case askOnce:
			_, _ = c.Write(ask)
		case askOpen:
			_, _ = c.Write(ask)
			_, _ = io.Copy(io.Discard, c)
		}
	})
}

func receiveUpload(c *net.TCPConn) {
	buf := make([]byte, 256<<10)
	if _, err := c.Read(buf); err != nil {
		return
	}
	first := time.Now()
	last, total := first, uint64(0)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			total, last = total+uint64(n), time.Now()
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return
		}
	}
	report := binary.BigEndian.AppendUint64(nil, total)
	report = binary.BigEndian.AppendUint64(report, uint64(last.Sub(first)))
	_, _ = c.Write(report)
}

package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// patience bounds everything that is not the measured time itself.
const patience = 20 * time.Second

// exchangeByte sends one byte to the target and gets it back. The connection
// stays open at both ends.
func exchangeByte(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	b := []byte{askOpen}
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// exchangeOnce sends one byte to the target, gets it back, and waits for the end.
// The target ends first, so that the ports that stay reserved after a connection
// (TIME-WAIT) are the listeners' and not those that the next open needs.
func exchangeOnce(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	b := []byte{askOnce, 0}
	if _, err := c.Write(b[:1]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return err
	}
	if _, err := c.Read(b); err != io.EOF {
		return fmt.Errorf("where the end was due: %w", cmp.Or(err, errors.New("another byte")))
	}
	return nil
}

// ask dials and says what it wants.
func ask(ctx context.Context, dial dialer, what byte) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{what}); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// downloads are bulk readers that run until they are stopped.
type downloads struct {
	conns []*net.TCPConn
	bytes atomic.Int64
	wg    sync.WaitGroup
	mu    sync.Mutex
	err   error
}

// startDownloads starts n bulk readers and returns once bytes flow to each.
func startDownloads(ctx context.Context, dial dialer, n int) (*downloads, error) {
	d := new(downloads)
	for range n {
		c, err := ask(ctx, dial, askDownload)
		if err != nil {
			d.abort()
			return nil, err
		}
		d.conns = append(d.conns, c)
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			d.abort()
			return nil, fmt.Errorf("first byte of a download: %w", err)
		}
		_ = c.SetReadDeadline(time.Time{})
		d.wg.Go(func() { d.read(c) })
	}
	return d, nil
}

func (d *downloads) read(c *net.TCPConn) {
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		d.bytes.Add(int64(n))
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			d.mu.Lock()
			d.err = err
			d.mu.Unlock()
		}
		return
	}
}

// stop ends the downloads in order, by half-closing them and reading the rest.
func (d *downloads) stop() error {
	for _, c := range d.conns {
		_ = c.CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(patience))
	}
	d.wg.Wait()
	d.abort()
	if d.err != nil {
		return fmt.Errorf("download: %w", d.err)
	}
	return nil
}

// abort closes the connections as they are.
func (d *downloads) abort() {
	for _, c := range d.conns {
		_ = c.Close()
	}
	d.wg.Wait()
}

// download measures n bulk readers together for a while, from the moment at
// which bytes flow to all of them, and returns bytes and seconds.
func download(ctx context.Context, dial dialer, n int, length time.Duration) (moved, seconds float64, err error) {
	d, err := startDownloads(ctx, dial, n)
	if err != nil {
		return 0, 0, err
	}
	start, before := time.Now(), d.bytes.Load()
	wait(ctx, length)
	moved = float64(d.bytes.Load() - before)
	seconds = time.Since(start).Seconds()
	return moved, seconds, errors.Join(ctx.Err(), d.stop())
}

// upload writes for a while and returns the bytes per second at the target.
func upload(ctx context.Context, dial dialer, length time.Duration) (float64, error) {
	c, err := ask(ctx, dial, askUpload)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	end := time.Now().Add(length)
	_ = c.SetDeadline(end.Add(patience))
	for time.Now().Before(end) && ctx.Err() == nil {
		if _, err := c.Write(buf); err != nil {
			return 0, fmt.Errorf("upload: %w", err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	report := make([]byte, reportSize)
	if _, err := io.ReadFull(c, report); err != nil {
		return 0, fmt.Errorf("target's report of an upload: %w", err)
	}
	total, elapsed := binary.BigEndian.Uint64(report), binary.BigEndian.Uint64(report[8:])
	return float64(total) / (float64(elapsed) / 1e9), ctx.Err()
}

// echoSize is the length of the message of the echo figures.
const echoSize = 64

// echoes sends messages one after another over each of n connections for a while
// and returns all round trip times in milliseconds, sorted.
func echoes(ctx context.Context, dial dialer, n, warm int, length time.Duration) ([]float64, error) {
	var mu sync.Mutex
	var all []float64
	var failed error
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			times, err := echo(ctx, dial, warm, length)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, times...)
			failed = cmp.Or(failed, err)
		})
	}
	wg.Wait()
	slices.Sort(all)
	return all, cmp.Or(ctx.Err(), failed)
}

func echo(ctx context.Context, dial dialer, warm int, length time.Duration) ([]float64, error) {
	c, err := ask(ctx, dial, askEcho)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	msg := make([]byte, echoSize)
	var times []float64
	var end time.Time
	for i := 0; ctx.Err() == nil; i++ {
		now := time.Now()
		if i == warm {
			end = now.Add(length)
		}
		if i >= warm && now.After(end) {
			break
		}
		_ = c.SetDeadline(now.Add(patience))
		if _, err := c.Write(msg); err != nil {
			return nil, fmt.Errorf("echo: %w", err)
		}
		if _, err := io.ReadFull(c, msg); err != nil {
			return nil, fmt.Errorf("echo: %w", err)
		}
		if i >= warm {
			times = append(times, float64(time.Since(now))/float64(time.Millisecond))
		}
	}
	return times, nil
}

// openWarm goes before a sample of opens and does not count: pools grow to the
// load.
const openWarm = 250 * time.Millisecond

// opens returns how many connections per second a number of workers can open,
// exchange one byte over, and close.
func opens(ctx context.Context, dial dialer, workers int, length time.Duration) (float64, error) {
	start := time.Now().Add(openWarm)
	end := start.Add(length)
	ctx, cancel := context.WithDeadline(ctx, end.Add(patience))
	defer cancel()
	var done atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for time.Now().Before(end) {
				c, err := dial(ctx)
				if err == nil {
					err = exchangeOnce(c)
					_ = c.Close()
				}
				if err != nil {
					errs[i] = fmt.Errorf("open: %w", err)
					return
				}
				if now := time.Now(); now.After(start) && now.Before(end) {
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / length.Seconds(), cmp.Or(errs...)
}

// holdIdle opens n connections, exchanges one byte over each and returns them.
func holdIdle(ctx context.Context, dial dialer, n int) ([]*net.TCPConn, error) {
	const workers = 16
	var next atomic.Int64
	conns := make([]*net.TCPConn, n)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= n || ctx.Err() != nil {
					return
				}
				c, err := dial(ctx)
				if err == nil {
					conns[k] = c
					err = exchangeByte(c)
				}
				if err != nil {
					errs[i] = fmt.Errorf("idle stream %d: %w", k, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return conns, cmp.Or(ctx.Err(), cmp.Or(errs...))
}

func closeAll(conns []*net.TCPConn) {
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// wait sleeps for a while or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// mega turns bytes and seconds into MB/s.
func mega(bytes, seconds float64) float64 {
	if seconds == 0 {
		return math.NaN()
	}
	return bytes / 1e6 / seconds
}

package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postern.dev/postern/internal/wire"
)

// Keep-alive probes towards a target: they find one that vanished without a
// word in about a minute, and keep firewalls on the way from forgetting it.
const (
	keepAliveIdle     = 30 * time.Second
	keepAliveInterval = 10 * time.Second
	keepAliveCount    = 3
)

// attempt is what the errors of a race tell about.
type attempt struct {
	name    string // what was resolved
	port    uint16
	timeout time.Duration
}

type outcome struct {
	addr netip.AddrPort
	conn net.Conn
	err  error
}

// race connects to the first of addrs that answers: one at a time, the next
// one as soon as the one before failed or took longer than the stagger. It
// returns only after every connection but the winner is closed.
func (d *Dialer) race(ctx context.Context, what attempt, addrs []netip.AddrPort) (net.Conn, error) {
	connect := d.Connect
	if connect == nil {
		connect = connectTCP
	}
	if len(addrs) == 1 {
		conn, err := connect(ctx, addrs[0])
		if err != nil {
			return nil, what.failure(ctx, []outcome{{addr: addrs[0], err: err}})
		}
		return conn, nil
	}
	stagger := d.Stagger
	if stagger <= 0 {
		stagger = DefaultStagger
	}
	raceCtx, stop := context.WithCancel(ctx)
	defer stop()
	results := make(chan outcome)
	start := func(a netip.AddrPort) {
		go func() {
			conn, err := connect(raceCtx, a)
			results <- outcome{a, conn, err}
		}()
	}
	timer := time.NewTimer(stagger)
	defer timer.Stop()

	var winner net.Conn
	var failed []outcome
	start(addrs[0])
	next, running := 1, 1
	for running > 0 {
		select {
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				failed = append(failed, r)
			case winner != nil:
				_ = r.conn.Close() // it answered after the race was over
			default:
				winner = r.conn
				stop()
			}
		case <-timer.C:
		}
		if winner == nil && next < len(addrs) && ctx.Err() == nil {
			start(addrs[next])
			next++
			running++
			timer.Reset(stagger)
		}
	}
	if winner != nil {
		return winner, nil
	}
	return nil, what.failure(ctx, failed)
}

func connectTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	// Nothing vanishes without a word on the machine itself.
	d := net.Dialer{KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{
		Enable: !addr.Addr().IsLoopback(), Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}
	d.SetMultipathTCP(false) // plain TCP can be spliced, and targets rarely speak the other
	// Not d.DialTCP: with an address of our own, even an empty one, it binds first, and
	// then a local port serves one target at a time in the whole machine. The text is
	// an IP address, so nothing is resolved again.
	return d.DialContext(ctx, "tcp", addr.String())
}

// failure turns the failed attempts into one error: it tells of the attempt
// that came closest, since a refusal by one address says more than the missing
// route to another.
func (w attempt) failure(ctx context.Context, failed []outcome) error {
	best, code := outcome{}, wire.CodeNone
	rank := map[wire.Code]int{
		wire.CodeRefused: 6, wire.CodeReset: 5, wire.CodeTimeout: 4, wire.CodeUnreachable: 3, wire.CodeInternal: 2, wire.CodeCanceled: 1,
	}
	var tried []string
	for _, o := range failed {
		tried = append(tried, o.addr.Addr().String())
		if c := classify(ctx, o.err); rank[c] > rank[code] {
			best, code = o, c
		}
	}
	where := net.JoinHostPort(w.name, strconv.Itoa(int(w.port)))
	if len(tried) > 1 || tried[0] != w.name {
		where += " (" + strings.Join(tried, ", ") + ")"
	}
	var f *wire.Failure
	switch code {
	case wire.CodeRefused:
		f = wire.Fail(wire.LegTCP, code, "%s refused the connection", where).
			WithHint("check that the service is running and listens on that port")
	case wire.CodeReset:
		f = wire.Fail(wire.LegTCP, code, "%s reset the connection while it was being opened", where)
	case wire.CodeTimeout:
		f = wire.Fail(wire.LegTCP, code, "%s did not answer within %s", where, w.timeout).
			WithHint("check the address, and whether a firewall or network policy drops the agent's packets")
	case wire.CodeUnreachable:
		f = wire.Fail(wire.LegTCP, code, "there is no route from the agent to %s", where)
	case wire.CodeCanceled:
		f = wire.Fail(wire.LegTCP, code, "the connection to %s was given up", where)
	default:
		f = wire.Fail(wire.LegTCP, wire.CodeInternal, "connect to %s: %s", where, plain(best.err))
	}
	return f.WithCause(best.err)
}

func classify(ctx context.Context, err error) wire.Code {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return wire.CodeRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED):
		return wire.CodeReset
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL),
		errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM),
		errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENETDOWN), errors.Is(err, syscall.EHOSTDOWN):
		return wire.CodeUnreachable
	case errors.Is(context.Cause(ctx), context.Canceled):
		return wire.CodeCanceled
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		return wire.CodeTimeout
	default:
		return wire.CodeInternal
	}
}

// plain returns the innermost text of a dial error, without addresses.
func plain(err error) string {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys.Err.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err.Error()
	}
	return err.Error()
}

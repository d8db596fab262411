package relay

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/limit"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/wire"
)

// servePipe reads a party's JOIN and joins it to its peer.
func (r *Relay) servePipe(ctx context.Context, conn net.Conn, tc *tls.Conn, rc *pipe.RecordConn) {
	id, err := identity.CertificateID(tc.ConnectionState().PeerCertificates[0])
	if err != nil {
		r.drop(conn)
		return
	}
	log := r.cfg.Log.With("party", id, "remote", conn.RemoteAddr().String())
	_ = conn.SetDeadline(time.Now().Add(r.cfg.JoinTime))
	join, err := readJoin(tc)
	_ = conn.SetDeadline(time.Time{})
	var refusal *wire.Failure
	switch {
	case err != nil:
		refusal = wire.Fail(wire.LegRelay, wire.CodeProtocol, "%v", err)
	case !rc.AtBoundary():
		refusal = wire.Fail(wire.LegRelay, wire.CodeProtocol, "JOIN is more than one record")
	case join.Kind == wire.JoinProbe:
		r.probe(conn, tc)
		return
	case !join.Ticket.At(r.cfg.Node):
		refusal = wire.Fail(wire.LegRelay, wire.CodeWrongPeer, "the ticket is for another relay than %s", r.cfg.Node)
	}
	if refusal != nil {
		r.refuse(conn, tc, refusal)
		log.Log(ctx, refusalLevel(refusal), "join refused", "error", refusal)
		return
	}
	self := &party{id: id, outer: tc, bare: conn, met: make(chan outcome, 1)}
	peer, pair, second, refusal := r.meet.meet(ctx, join.Ticket, self)
	switch {
	case refusal != nil:
		r.cfg.Metrics.Paired(refusal)
		r.refuse(conn, tc, refusal)
		log.Log(ctx, refusalLevel(refusal), "join refused", "error", refusal)
	case second:
		use, refusal := r.enter(peer, self)
		if refusal != nil {
			peer.met <- outcome{refusal: refusal}
			r.cfg.Metrics.Paired(refusal)
			r.refuse(conn, tc, refusal)
			log.Debug("join refused", "error", refusal)
			return
		}
		if failed := r.answer(self, peer); failed != nil {
			use.Leave()
			peer.met <- outcome{refusal: failed}
			r.drop(conn)
			log.Info("join failed", "error", failed)
			return
		}
		if peer.outer == nil { // the hub's own proxy owns the connection from now on
			r.untrack(conn)
			peer.met <- outcome{peer: self}
			return
		}
		pair := r.newPair(use)
		peer.met <- outcome{peer: self, pair: pair}
		r.move(pair, peer.bare, conn)
	case peer.outer == nil:
		r.untrack(conn)
	default:
		r.move(pair, peer.bare, conn)
	}
}

// refusalLevel is how much a refused JOIN matters to who runs the relay: one that
// is shutting down refuses all, a peer that did not come is its own story, and of
// limits the hub tells once in a while.
func refusalLevel(f *wire.Failure) slog.Level {
	if f.Code == wire.CodeDraining || f.Code == wire.CodeTicketExpired || f.Code == wire.CodeOverloaded {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// enter counts a pipe of two parties in, or says which limit forbids it.
func (r *Relay) enter(a, b *party) (*limit.Use, *wire.Failure) {
	if a.outer == nil || b.outer == nil {
		return nil, nil // the hub's own proxy counts its streams
	}
	if a.id.Role == identity.RoleAgent {
		a, b = b, a
	}
	use, refusal := r.cfg.Limits.Enter(limit.OnePipe, a.id.Organization, b.id.Name, a.id.Name)
	if refusal != nil {
		return nil, refusal.Failure(wire.LegRelay)
	}
	return use, nil
}

// JoinLocal presents a ticket for the hub's own proxy, which needs no connection
// to the relay: it is given the bare connection to the agent, or is refused.
func (r *Relay) JoinLocal(ctx context.Context, ticket wire.Ticket, id identity.ID) (net.Conn, error) {
	self := &party{id: id, met: make(chan outcome, 1)}
	peer, _, second, refusal := r.meet.meet(ctx, ticket, self)
	if refusal != nil {
		r.cfg.Metrics.Paired(refusal)
		return nil, refusal
	}
	if second { // the agent waits: it is answered here, and its goroutine told
		if failed := r.answer(peer, self); failed != nil {
			peer.met <- outcome{refusal: failed}
			return nil, failed
		}
		peer.met <- outcome{peer: self}
	}
	return r.lend(peer.bare), nil
}

// readJoin reads the one record that holds JOIN.
func readJoin(tc *tls.Conn) (wire.Join, error) {
	var b [wire.JoinLen + 1]byte
	n, err := tc.Read(b[:])
	if err != nil {
		return wire.Join{}, err
	}
	return wire.ParseJoin(b[:n])
}

// answer tells both parties that they are joined. From then on their connections
// are bare. When one cannot be told, both are closed.
func (r *Relay) answer(parties ...*party) *wire.Failure {
	for _, p := range parties {
		if p.outer == nil {
			continue
		}
		_ = p.bare.SetWriteDeadline(time.Now().Add(r.cfg.JoinTime))
		_, err := p.outer.Write(wire.AppendJoinAnswer(nil, nil))
		_ = p.bare.SetWriteDeadline(time.Time{})
		if err == nil {
			continue
		}
		for _, q := range parties {
			if q.bare != nil {
				_ = q.bare.Close()
			}
		}
		return wire.Fail(wire.LegRelay, wire.CodeLost, "%s left while it was joined: %v", p.id, err).WithCause(err)
	}
	return nil
}

// refuse tells a party why it is not joined, and closes its connection.
func (r *Relay) refuse(conn net.Conn, tc *tls.Conn, f *wire.Failure) {
	_ = conn.SetDeadline(time.Now().Add(r.cfg.JoinTime))
	if _, err := tc.Write(wire.AppendJoinAnswer(nil, f)); err == nil {
		_ = tc.Close()
	}
	r.drop(conn)
}

// probe returns a few bytes over the bare connection, as proof that pipes work
// from where the caller is.
func (r *Relay) probe(conn net.Conn, tc *tls.Conn) {
	defer r.drop(conn)
	_ = conn.SetDeadline(time.Now().Add(r.cfg.JoinTime))
	if _, err := tc.Write(wire.AppendJoinAnswer(nil, nil)); err != nil {
		return
	}
	var b [wire.ProbeLen]byte
	if _, err := io.ReadFull(conn, b[:]); err == nil {
		_, _ = conn.Write(b[:])
	}
}

// pair is a pipe as the relay sees it: two connections and the two goroutines
// that move bytes between them.
type pair struct {
	moving  atomic.Int32
	bytes   atomic.Int64
	sampled int64 // bytes at the last call of Busy; guarded by Relay.mu
	use     *limit.Use
	ended   atomic.Bool // there is no use in waiting for a turn any more
}

// Alive implements limit.Living.
func (p *pair) Alive() bool { return !p.ended.Load() }

func (r *Relay) newPair(use *limit.Use) *pair {
	p := &pair{use: use}
	p.moving.Store(2)
	r.mu.Lock()
	r.pairs[p] = struct{}{}
	r.mu.Unlock()
	r.cfg.Metrics.Paired(nil)
	return p
}

// lastTime is how long one side of a pipe may go on after the other has ended.
const lastTime = 10 * time.Second

// move moves bytes from src, this goroutine's own connection, to dst until src
// ends. The second of the two goroutines to finish closes both.
func (r *Relay) move(p *pair, dst, src net.Conn) {
	err := r.splicer.copy(dst, src, p)
	if err == nil {
		if tcp, ok := dst.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
			_ = dst.SetReadDeadline(time.Now().Add(lastTime))
		} else { // it has no half-close: its end is all that can be told
			_ = dst.Close()
		}
	} else {
		p.ended.Store(true)
		_ = dst.Close()
		_ = src.Close()
	}
	if p.moving.Add(-1) == 0 {
		r.drop(dst)
		r.drop(src)
		p.use.Leave()
		r.mu.Lock()
		delete(r.pairs, p)
		r.mu.Unlock()
		r.cfg.Metrics.Unpaired(uint64(max(p.bytes.Load(), 0)))
	}
}

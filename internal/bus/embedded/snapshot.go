package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	snapshotChunk  = 128 << 10       // bytes of a message with a part of a snapshot
	restoreChunk   = 16 << 10        // the same on the way back: the server gives up where one, compressed, takes it over 5 s to write
	snapshotWindow = 2 << 20         // bytes on the way from the server to us
	restoreTimeout = 2 * time.Minute // for one answer; it checks all messages of a stream before the first
)

// Streams returns the names of the streams in the store, sorted.
func (s *Server) Streams(ctx context.Context) ([]string, error) {
	js, err := jetstream.New(s.hubConn)
	if err != nil {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	names := js.StreamNames(ctx)
	var all []string
	for name := range names.Name() {
		all = append(all, name)
	}
	if err := names.Err(); err != nil {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	slices.Sort(all)
	return all, nil
}

// Snapshot is the content of a stream at one moment, on its way out of the store.
// It is decrypted. Read it once with WriteTo.
type Snapshot struct {
	Info []byte // what Restore needs to know; JSON

	ctx  context.Context // the one that Snapshot got
	conn *nats.Conn
	sub  *nats.Subscription
	name string
}

// apiAnswer is what all answers of the JetStream API have in common.
type apiAnswer struct {
	Error *struct {
		Code        int    `json:"code"`
		Description string `json:"description"`
	} `json:"error"`
	Deliver string          `json:"deliver_subject"`
	Config  json.RawMessage `json:"config"`
	State   json.RawMessage `json:"state"`
}

// ask calls the JetStream API.
func ask(ctx context.Context, nc *nats.Conn, subject string, body []byte) (apiAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	var a apiAnswer
	m, err := nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return a, err
	}
	if len(m.Data) == 0 {
		return a, nil
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, err
	}
	if a.Error != nil {
		return a, fmt.Errorf("%s (%d)", a.Error.Description, a.Error.Code)
	}
	return a, nil
}

// Snapshot begins to read a stream with all its consumers, of whose messages the
// checksums are checked. The reader must not dawdle for more than a few seconds.
// ctx limits all of it.
func (s *Server) Snapshot(ctx context.Context, stream string) (*Snapshot, error) {
	fail := func(err error) (*Snapshot, error) { return nil, fmt.Errorf("read stream %s: %w", stream, err) }
	inbox := s.hubConn.NewInbox()
	sub, err := s.hubConn.SubscribeSync(inbox)
	if err != nil {
		return fail(err)
	}
	body, err := json.Marshal(map[string]any{
		"deliver_subject": inbox, "jsck": true, "chunk_size": snapshotChunk, "window_size": snapshotWindow,
	})
	if err != nil {
		return fail(err)
	}
	a, err := ask(ctx, s.hubConn, "$JS.API.STREAM.SNAPSHOT."+stream, body)
	var info []byte
	if err == nil {
		info, err = json.Marshal(map[string]json.RawMessage{"config": a.Config, "state": a.State})
	}
	if err != nil {
		_ = sub.Unsubscribe()
		return fail(err)
	}
	return &Snapshot{Info: info, ctx: ctx, conn: s.hubConn, sub: sub, name: stream}, nil
}

// WriteTo implements io.WriterTo. It ends the Snapshot.
func (n *Snapshot) WriteTo(w io.Writer) (total int64, err error) {
	defer func() {
		_ = n.sub.Unsubscribe() // fails only when the connection is gone
		if err != nil {
			err = fmt.Errorf("read stream %s: %w", n.name, err)
		}
	}()
	for {
		m, err := n.next()
		if err != nil {
			return total, err
		}
		if status := m.Header.Get("Status"); status != "" && !strings.HasPrefix(status, "2") {
			return total, fmt.Errorf("the server ended it: %s %s", status, m.Header.Get("Description"))
		}
		if len(m.Data) == 0 {
			return total, nil
		}
		written, err := w.Write(m.Data)
		total += int64(written)
		if err != nil {
			return total, err
		}
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				return total, err
			}
		}
	}
}

// next returns the next part.
func (n *Snapshot) next() (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(n.ctx, restoreTimeout)
	defer cancel()
	return n.sub.NextMsgWithContext(ctx)
}

// Close ends a Snapshot that is not to be read.
func (n *Snapshot) Close() { _ = n.sub.Unsubscribe() }

// Restore makes a stream that is not there of what a Snapshot was, and checks that
// it is whole. ctx limits all of it.
func (s *Server) Restore(ctx context.Context, stream string, info []byte, content io.Reader) error {
	if err := s.restore(ctx, stream, info, content); err != nil {
		return fmt.Errorf("restore stream %s: %w", stream, err)
	}
	return nil
}

func (s *Server) restore(ctx context.Context, stream string, info []byte, content io.Reader) error {
	a, err := ask(ctx, s.hubConn, "$JS.API.STREAM.RESTORE."+stream, info)
	if err != nil {
		return err
	}
	if a.Deliver == "" {
		return errors.New("the server does not say where to send it")
	}
	if err := s.feed(ctx, a.Deliver, info, content); err != nil {
		_, _ = ask(ctx, s.hubConn, "$JS.API.STREAM.DELETE."+stream, nil) // half a stream may be there, or none
		return err
	}
	return nil
}

// feed sends a stream's content to where the server takes it.
func (s *Server) feed(ctx context.Context, subject string, info []byte, content io.Reader) error {
	buf := make([]byte, restoreChunk)
	for {
		n, err := io.ReadFull(content, buf)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !ended {
			return err
		}
		if n > 0 {
			if _, err := ask(ctx, s.hubConn, subject, buf[:n]); err != nil {
				return err
			}
		}
		if ended {
			break
		}
	}
	a, err := ask(ctx, s.hubConn, subject, nil)
	if err != nil {
		return err
	}
	var want struct {
		State streamState `json:"state"`
	}
	var got streamState
	if err := errors.Join(json.Unmarshal(info, &want), json.Unmarshal(a.State, &got)); err != nil {
		return err
	}
	if got.settled() != want.State.settled() {
		return fmt.Errorf("it came out as %+v and not as %+v", got, want.State)
	}
	return nil
}

// streamState is what has to be the same of a stream and its copy.
type streamState struct {
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
	First    uint64 `json:"first_seq"`
	Last     uint64 `json:"last_seq"`

	Consumers string `json:"-"` // their names, and how far each has come; of states only
}

// settled returns the state of an empty stream in one of the two ways in which
// the server tells it.
func (s streamState) settled() streamState {
	if s.Messages == 0 {
		s.First = s.Last + 1
	}
	return s
}

// states returns the state of each stream in the store.
func (s *Server) states(ctx context.Context) (map[string]streamState, error) {
	names, err := s.Streams(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]streamState, len(names))
	for _, name := range names {
		a, err := ask(ctx, s.hubConn, "$JS.API.STREAM.INFO."+name, nil)
		if err != nil {
			return nil, fmt.Errorf("look at stream %s: %w", name, err)
		}
		var state streamState
		if err := json.Unmarshal(a.State, &state); err != nil {
			return nil, fmt.Errorf("look at stream %s: %w", name, err)
		}
		if state.Consumers, err = s.consumers(ctx, name); err != nil {
			return nil, err
		}
		all[name] = state.settled()
	}
	return all, nil
}

// consumers returns the names of a stream's consumers that last, sorted, with how
// far each has come.
func (s *Server) consumers(ctx context.Context, stream string) (string, error) {
	js, err := jetstream.New(s.hubConn)
	if err != nil {
		return "", fmt.Errorf("look at stream %s: %w", stream, err)
	}
	one, err := js.Stream(ctx, stream)
	if err != nil {
		return "", fmt.Errorf("look at stream %s: %w", stream, err)
	}
	list := one.ListConsumers(ctx)
	var all []string
	for c := range list.Info() {
		if c.Config.Durable != "" {
			all = append(all, fmt.Sprintf("%s:%d:%d", c.Name, c.Delivered.Stream, c.AckFloor.Stream))
		}
	}
	if err := list.Err(); err != nil {
		return "", fmt.Errorf("look at the consumers of stream %s: %w", stream, err)
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

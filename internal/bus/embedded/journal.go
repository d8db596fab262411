package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
)

// JournalLimits say how long a Journal keeps what was written.
type JournalLimits struct {
	Age   time.Duration // 0: for ever
	Bytes int64         // of each chain, on disk; the oldest blocks go first
}

// Journal keeps audit chains, each in a stream of its own in the hub's account:
// one organization that writes much takes no room from the others. It is an
// audit.Journal, on disk and encrypted.
type Journal struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	limits JournalLimits

	mu    sync.Mutex
	ready map[string]bool // chains whose streams have our limits
}

var _ audit.Journal = (*Journal)(nil)

// Names of a chain's stream and subject. No organization has an underscore or a dot
// in its name.
const (
	journalHub  = "audit_hub"
	journalOrg  = "audit_org_"
	journalCopy = 2 * time.Minute // the server's own memory of message IDs, which we do not use
	maxJournal  = 512 << 10       // bytes of a block
)

// Journal opens the journal. It serves until Shutdown.
func (s *Server) Journal(limits JournalLimits) (*Journal, error) {
	js, err := jetstream.New(s.hubConn)
	if err != nil {
		return nil, fmt.Errorf("open audit journal: %w", err)
	}
	return &Journal{conn: s.hubConn, js: js, limits: limits, ready: make(map[string]bool)}, nil
}

func journalStream(chain string) (stream, subject string, err error) {
	if chain == "" {
		return journalHub, "audit.hub", nil
	}
	if err := identity.ValidateName("organization", chain); err != nil {
		return "", "", err
	}
	return journalOrg + chain, "audit.org." + chain, nil
}

// open makes a chain's stream, or gives it our limits.
func (j *Journal) open(ctx context.Context, chain string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ready[chain] {
		return nil
	}
	stream, subject, err := journalStream(chain)
	if err != nil {
		return err
	}
	_, err = j.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: stream, Subjects: []string{subject}, Storage: jetstream.FileStorage, Replicas: 1, Discard: jetstream.DiscardOld,
		MaxAge: j.limits.Age, MaxBytes: j.limits.Bytes, MaxMsgSize: maxJournal, Duplicates: min(journalCopy, j.limits.copies()),
		AllowDirect: true, DenyDelete: true,
	})
	if err != nil {
		return fmt.Errorf("open audit journal: %w", err)
	}
	j.ready[chain] = true
	return nil
}

// copies bounds the window for message IDs, which may not be longer than MaxAge.
func (l JournalLimits) copies() time.Duration {
	if l.Age == 0 {
		return journalCopy
	}
	return l.Age
}

// Append implements audit.Journal.
func (j *Journal) Append(ctx context.Context, chain string, last uint64, lines []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := j.open(ctx, chain); err != nil {
		return 0, err
	}
	stream, subject, err := journalStream(chain)
	if err != nil {
		return 0, err
	}
	ack, err := j.js.Publish(ctx, subject, lines, jetstream.WithExpectStream(stream), jetstream.WithExpectLastSequence(last))
	var refused *jetstream.APIError
	switch {
	case errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
		return 0, audit.ErrPosition
	case err != nil:
		j.mu.Lock()
		delete(j.ready, chain) // perhaps the stream is gone
		j.mu.Unlock()
		return 0, fmt.Errorf("write audit journal: %w", err)
	}
	return ack.Sequence, nil
}

// Bounds implements audit.Journal.
func (j *Journal) Bounds(ctx context.Context, chain string) (first, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	stream, _, err := journalStream(chain)
	if err != nil {
		return 0, 0, err
	}
	s, err := j.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 1, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read audit journal: %w", err)
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return state.LastSeq + 1, state.LastSeq, nil
	}
	return state.FirstSeq, state.LastSeq, nil
}

// Chains implements audit.Journal.
func (j *Journal) Chains(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var chains []string
	names := j.js.StreamNames(ctx)
	for name := range names.Name() {
		if name == journalHub {
			chains = append(chains, "")
		} else if org, ok := strings.CutPrefix(name, journalOrg); ok {
			chains = append(chains, org)
		}
	}
	if err := names.Err(); err != nil {
		return nil, fmt.Errorf("list audit journal: %w", err)
	}
	return chains, nil
}

// directGet is a request for several messages at once (NATS, ADR-31).
type directGet struct {
	Sequence uint64 `json:"seq"`
	Batch    int    `json:"batch"`
	MaxBytes int    `json:"max_bytes,omitempty"`
}

// maxRead is how many blocks one Read returns at most.
const maxRead = 512

// Read implements audit.Journal.
func (j *Journal) Read(ctx context.Context, chain string, after uint64, maxBytes int) ([]audit.Block, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	stream, _, err := journalStream(chain)
	if err != nil {
		return nil, err
	}
	request, err := json.Marshal(directGet{Sequence: after + 1, Batch: maxRead, MaxBytes: maxBytes})
	if err != nil {
		return nil, err
	}
	inbox := j.conn.NewRespInbox()
	sub, err := j.conn.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("read audit journal: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is gone
	if err := j.conn.PublishRequest("$JS.API.DIRECT.GET."+stream, inbox, request); err != nil {
		return nil, fmt.Errorf("read audit journal: %w", err)
	}
	var blocks []audit.Block
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrNoResponders) {
			return nil, nil // no such stream
		}
		if err != nil {
			return nil, fmt.Errorf("read audit journal: %w", err)
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204", "404": // the end of the batch; nothing there
			return blocks, nil
		default:
			return nil, fmt.Errorf("read audit journal: the store answers %s %s", status, m.Header.Get("Description"))
		}
		position, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read audit journal: a block without a position: %w", err)
		}
		stored, err := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
		if err != nil {
			return nil, fmt.Errorf("read audit journal: a block without a time: %w", err)
		}
		blocks = append(blocks, audit.Block{Position: position, Stored: stored, Lines: m.Data})
	}
}

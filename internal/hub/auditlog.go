package hub

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/bus/embedded"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/observe"
	"postern.dev/postern/internal/wholefile"
	"postern.dev/postern/internal/wire"
)

// auditDir holds, in the state directory, the newest signed head of each audit
// chain: apart from the bus's store, whose end could be cut off else.
const auditDir = "audit"

// auditTakes bounds how long an agent's records may take to be written.
const auditTakes = 8 * time.Second

// auditLog is the audit log of a hub: who writes it, and who keeps floods out of it.
type auditLog struct {
	*audit.Keeper
	flood   *audit.Flood
	streams *audit.Streams // through the hub's own proxies
	journal audit.Journal
	signer  *audit.Signer
	log     *slog.Logger

	mu      sync.Mutex
	readers map[string]int // by chain
	reading int            // all of them

	end func() // writes what is queued, and waits for all of it
}

// newAuditLog starts the audit log of a hub; openAfter is that of audit.NewStreams. end
// it before the journal.
func newAuditLog(
	ctx context.Context, state *State, journal audit.Journal, openAfter time.Duration, sinks []auditSink, cursors audit.Cursors,
	metrics *observe.Audit, log *slog.Logger,
) (*auditLog, error) {
	key, err := state.Secret("audit", audit.NewSigningKey)
	if err != nil {
		return nil, err
	}
	signer, err := audit.NewSigner(key)
	if err != nil {
		return nil, err
	}
	heads := auditHeads{dir: state.Path(auditDir)}
	if err := os.Mkdir(heads.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fileError(heads.dir, err)
	}
	wholefile.Tidy(heads.dir)
	l := &auditLog{journal: journal, signer: signer, log: log, readers: make(map[string]int)}
	l.Keeper = audit.NewKeeper(audit.KeeperConfig{Journal: journal, Heads: heads, Signer: signer, Metrics: metrics, Log: log})
	l.flood, l.streams = audit.NewFlood(l.Keeper, nil), audit.NewStreams(l.Keeper, openAfter)
	work, endWork := context.WithCancel(context.WithoutCancel(ctx))
	write, endKeeper := context.WithCancel(context.WithoutCancel(ctx))
	var recorders, keeper sync.WaitGroup
	recorders.Go(func() { l.flood.Run(work) })
	recorders.Go(func() { l.streams.Run(work) })
	keeper.Go(func() { l.Run(write) })
	exporting, endExport := context.WithCancel(context.WithoutCancel(ctx))
	exporters := l.export(exporting, sinks, cursors, metrics)
	l.end = sync.OnceFunc(func() {
		endWork()
		recorders.Wait()
		endKeeper()
		keeper.Wait()
		endExport()
		exporters.Wait()
	})
	return l, nil
}

// take keeps what a replica of an agent recorded.
func (l *auditLog) take(ctx context.Context, organization, agent, replica string, batch []byte) error {
	records, err := audit.ParseBatch(batch, organization, agent, replica, time.Now())
	if err != nil {
		return wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err).WithCause(err)
	}
	ctx, cancel := context.WithTimeout(ctx, auditTakes)
	defer cancel()
	switch err := l.Put(ctx, records); {
	case errors.Is(err, audit.ErrFull):
		return wire.Fail(wire.LegHub, wire.CodeOverloaded, "%s", err).WithCause(err)
	case err != nil:
		return wire.Fail(wire.LegHub, wire.CodeTimeout, "the audit records were not written in time").WithCause(err)
	}
	return nil
}

// auditHeads keeps the heads of chains as files.
type auditHeads struct{ dir string }

func (h auditHeads) file(chain string) (string, error) {
	if chain == "" {
		return filepath.Join(h.dir, "hub.json"), nil
	}
	return filepath.Join(h.dir, "org."+chain+".json"), identity.ValidateName("organization", chain)
}

// LoadHead implements audit.Heads.
func (h auditHeads) LoadHead(chain string) (audit.Head, error) {
	name, err := h.file(chain)
	if err != nil {
		return audit.Head{}, err
	}
	b, err := readPrivate(name)
	if errors.Is(err, fs.ErrNotExist) {
		return audit.Head{}, nil
	}
	if err != nil {
		return audit.Head{}, err
	}
	var head audit.Head
	if err := json.Unmarshal(b, &head); err != nil {
		return audit.Head{}, stateError(ErrStateCorrupt, name, "it is not JSON: %s", err)
	}
	return head, nil
}

// SaveHead implements audit.Heads.
func (h auditHeads) SaveHead(chain string, head audit.Head) error {
	name, err := h.file(chain)
	if err != nil {
		return err
	}
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	return writeFile(name, append(b, '\n'))
}

// openAudit starts the hub's audit log.
func (h *Hub) openAudit(ctx context.Context) error {
	journal, err := h.bus.Journal(embedded.JournalLimits{Age: h.cfg.AuditMaxAge, Bytes: h.cfg.AuditMaxBytes})
	if err != nil {
		return err
	}
	var metrics *observe.Audit
	if h.opt.Registry != nil {
		metrics = observe.NewAudit(h.opt.Registry)
	}
	cursors, err := h.bus.KV(ctx, "audit-cursors")
	if err != nil {
		return err
	}
	sinks, err := auditSinks(h.cfg.Audit, h.state.Node())
	if err != nil {
		return err
	}
	h.audit, err = newAuditLog(ctx, h.state, journal, h.cfg.AuditOpenAfter, sinks, auditCursors{cursors}, metrics, h.log)
	return err
}

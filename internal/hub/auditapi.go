package hub

import (
	"context"
	"errors"
	"net/http"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/audit"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// Limits of those who read the audit log.
const (
	maxAuditReaders = 64 // at once
	maxAuditOfOne   = 8  // of one organization's log
	auditRead       = 256 << 10
	auditPatience   = 30 * time.Second // for a reader to take what it asked for
	auditPulse      = 15 * time.Second // an empty line shows that both sides live
	auditFollow     = 24 * time.Hour   // after which a follower has to ask again
	auditRecheck    = time.Minute      // whether a follower may still read
)

func (a *API) auditRoutes() {
	if a.o.AuditLog == nil {
		return
	}
	org := api.PathOrganizations + "/{org}/audit"
	a.lasting("GET "+org, role.Audit, a.readAudit)
	a.handle("GET "+org+"/head", role.Audit, a.auditHead)
	a.lasting("GET "+api.PathAudit, role.Hub, a.readAudit)
	a.handle("GET "+api.PathAudit+"/head", role.Hub, a.auditHead)
}

// lasting routes a pattern to a handler for callers who hold a permission, which
// answers by itself and may take its time.
func (a *API) lasting(pattern string, need role.Permission, h func(http.ResponseWriter, *http.Request) error) {
	a.table = append(a.table, route{pattern: pattern, need: need})
	a.slow[pattern] = true
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r, n := withNote(r)
		n.need = need
		c, err := a.permit(r, need)
		if err == nil {
			n.held = true
			err = h(w, withCaller(r, c))
		}
		a.recordRequest(r, n, nil, err)
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

// chainOf returns whose log a request is about, and since when the caller may see it:
// an organization sees nothing of one of its name that was deleted.
func (a *API) chainOf(r *http.Request) (chain string, since time.Time, err error) {
	chain = r.PathValue("org")
	if chain == "" {
		return "", time.Time{}, nil
	}
	org, err := a.o.Registry.Organization(r.Context(), chain)
	if c := callerOf(r); err != nil || c.Admin() || c.Hub {
		return chain, time.Time{}, err
	}
	return chain, org.Created, nil
}

func (a *API) auditHead(r *http.Request) (any, error) {
	chain, _, err := a.chainOf(r)
	if err != nil {
		return nil, err
	}
	key, err := a.o.AuditLog.signer.PublicKey()
	if err != nil {
		return nil, err
	}
	head := a.o.AuditLog.Head(chain)
	return api.AuditHead{Organization: chain, Sequence: head.Sequence, Hash: head.Hash, PublicKey: string(key)}, nil
}

// readAudit answers with the records of a log, as JSON lines; with follow=true also
// with those to come.
func (a *API) readAudit(w http.ResponseWriter, r *http.Request) error {
	chain, since, err := a.chainOf(r)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	filter, err := audit.ParseFilter(query)
	if err != nil {
		return wire.Fail(wire.LegHub, wire.CodeBadRequest, "%s", err)
	}
	leave, err := a.o.AuditLog.enter(chain)
	if err != nil {
		return err
	}
	defer leave()
	from := filter.Since
	if since.After(from) {
		from = since
	}
	at, err := audit.Seek(r.Context(), a.o.AuditLog.journal, chain, from)
	if err != nil {
		return err
	}
	a.o.Audit.Record(audit.Record{
		Action: audit.Read, Organization: chain, Actor: callerOf(r).Principal, Source: sourceText(r), Object: "audit", What: "read", OK: true,
	})
	w.Header().Set("Content-Type", api.TypeLines)
	reader := &auditReader{api: a, w: w, control: http.NewResponseController(w), chain: chain, filter: filter, at: at}
	follow := query.Get("follow") == "true"
	if err := reader.run(r, follow); err != nil {
		if r.Context().Err() == nil {
			a.o.Log.Warn("reader of the audit log cut", "organization", chain, "source", sourceOf(r).String(), "error", err)
		}
		panic(http.ErrAbortHandler) // what was sent must not look like all
	}
	return nil
}

// auditReader sends a chain to one reader.
type auditReader struct {
	api     *API
	w       http.ResponseWriter
	control *http.ResponseController
	chain   string
	filter  audit.Filter
	at      uint64
}

func (s *auditReader) run(r *http.Request, follow bool) error {
	ctx := r.Context()
	pulse := time.NewTicker(auditPulse)
	defer pulse.Stop()
	checked := time.Now()
	for {
		changed := s.api.o.AuditLog.Changed()
		if err := s.send(ctx); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-pulse.C:
			if err := s.write([]byte("\n")); err != nil {
				return err
			}
		}
		if time.Since(checked) > auditRecheck {
			checked = time.Now()
			if _, err := s.api.permit(r, noteOf(r).need); err != nil {
				return err
			}
		}
	}
}

// send sends what there is and was not sent yet.
func (s *auditReader) send(ctx context.Context) error {
	for {
		blocks, err := s.api.o.AuditLog.journal.Read(ctx, s.chain, s.at, auditRead)
		if err != nil {
			return err
		}
		var out []byte
		for _, b := range blocks {
			s.at = b.Position
			for line := range b.Entries() {
				if e, err := audit.ParseEntry(line); err == nil && !s.filter.Match(&e.Record) {
					continue // what cannot be read is shown: somebody damaged it
				}
				out = append(append(out, line...), '\n')
			}
		}
		if err := s.write(out); err != nil {
			return err
		}
		if len(blocks) == 0 {
			return nil
		}
	}
}

// write gives the reader some time to take it.
func (s *auditReader) write(b []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(auditPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	if err := s.control.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// enter takes a place among the readers of a log.
func (l *auditLog) enter(chain string) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readers[chain] >= maxAuditOfOne || l.reading >= maxAuditReaders {
		return nil, &api.Problem{
			Status: http.StatusTooManyRequests, Code: wire.CodeOverloaded.String(), RetryAfter: time.Minute,
			Detail: "too many read this audit log at once", Hint: "end one of them, or read an export",
		}
	}
	l.readers[chain]++
	l.reading++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.reading--
		if l.readers[chain]--; l.readers[chain] == 0 {
			delete(l.readers, chain)
		}
	}, nil
}

// everywhere reports whether a caller holds permissions also where there is no such
// organization.
func (c Caller) everywhere() bool { return c.Admin() || c.Kind == identity.KindUser && c.Hub }

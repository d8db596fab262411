package hub

import (
	"context"
	"io"
	"net/http"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/role"
	"postern.dev/postern/internal/wire"
)

// backupStall is how long whoever takes a backup may not take anything.
const backupStall = 30 * time.Second

// backup sends a backup of the hub. It takes as long as it takes, one at a time.
func (a *API) backup(w http.ResponseWriter, r *http.Request) {
	if _, err := a.permit(r, role.Hub); err != nil {
		a.fail(w, r, err)
		return
	}
	if !a.saving.TryLock() {
		a.fail(w, r, conflict("another backup is being made", "wait until it is done"))
		return
	}
	defer a.saving.Unlock()
	a.o.Log.Info("backup begins", "source", sourceOf(r).String())
	w.Header().Set("Content-Type", api.TypeBackup)
	out := &patientWriter{w: w, control: http.NewResponseController(w)}
	// Not for as long as other requests last: each write has its own limit.
	err := a.o.Backup(context.WithoutCancel(r.Context()), out)
	if err == nil {
		a.o.Log.Info("backup made", "bytes", out.bytes)
		return
	}
	a.o.Log.Error("backup not made", "bytes", out.bytes, "error", err)
	if out.bytes == 0 {
		a.fail(w, r, wire.Fail(wire.LegHub, wire.CodeInternal, "the backup could not be made").WithCause(err).WithHint("see the hub's log"))
		return
	}
	panic(http.ErrAbortHandler) // the only way to tell the other side
}

// patientWriter gives each write its own time.
type patientWriter struct {
	w       io.Writer
	control *http.ResponseController
	bytes   int64
}

// Write implements io.Writer.
func (p *patientWriter) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(backupStall)) // not supported by recorders in tests
	n, err := p.w.Write(b)
	p.bytes += int64(n)
	return n, err
}

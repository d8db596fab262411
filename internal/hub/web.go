package hub

import (
	"log/slog"
	"net"
	"net/http"
	"sync"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/webconn"
	"postern.dev/postern/internal/wire"
)

// webEntrance is the one port inside the hub's HTTPS: a WebSocket at
// api.PathConnect is given to the relay, as if it had been accepted on the port. All
// other requests go on to next.
//
// Who calls is unknown here, and stays so until the TLS inside has told the relay,
// whose limits for strangers hold meanwhile.
type webEntrance struct {
	next http.Handler
	take func(net.Conn)
	log  *slog.Logger
	open sync.WaitGroup // one for each WebSocket
}

// ServeHTTP implements http.Handler.
func (e *webEntrance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != api.PathConnect {
		e.next.ServeHTTP(w, r)
		return
	}
	e.connect(w, r)
}

// connect gives a WebSocket to the relay, and waits for its end. It is apart so that
// other requests, which may be watches, need less of a stack.
//
//go:noinline
func (e *webEntrance) connect(w http.ResponseWriter, r *http.Request) {
	if _, nested := r.Context().Value(http.LocalAddrContextKey).(webconn.Addr); nested {
		// Each level would cost memory that no limit of connections sees.
		api.WriteProblem(w, &api.Problem{
			Status: http.StatusForbidden, Code: wire.CodeDenied.String(), Detail: "this is the inside of a WebSocket already",
		})
		return
	}
	e.open.Add(1)
	defer e.open.Done()
	conn, err := webconn.Accept(w, r)
	if err != nil {
		e.log.Debug("WebSocket upgrade failed", "remote", r.RemoteAddr, "error", err)
		return
	}
	e.take(conn)
	conn.Wait()
}

// wait returns when no WebSocket is open any more. The relay closes them.
func (e *webEntrance) wait() { e.open.Wait() }

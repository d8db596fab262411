package hub

import (
	"log/slog"
	"net/http"
	"time"
)

// Pings of HTTP/2 go to a client that has been silent for a while: they find one that has
// vanished, and keep a connection alive on which a watch has nothing to say. Proxies and
// load balancers on the way cut what is silent for a minute, some for half of one.
const (
	pingAfter = 15 * time.Second
	pingTime  = 15 * time.Second // for the answer
)

// NewHTTPServer returns the server for a hub's HTTPS handlers, with limits
// against clients that dawdle. Handlers limit the time of bodies and answers
// themselves, because some answer for hours.
func NewHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: pingAfter, PingTimeout: pingTime},
	}
}

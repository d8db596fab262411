package hub

import (
	"log/slog"
	"net/http"
	"time"
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
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}

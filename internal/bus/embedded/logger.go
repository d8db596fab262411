package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// logger gives NATS's log lines to slog. What NATS finds notable in a server of
// its own is a detail in ours. Traces, which would show messages, are off.
type logger struct {
	log *slog.Logger

	mu    sync.Mutex
	fatal error // the last fatal line; NATS expects the process to end at it
}

const (
	serverMessage = "bus server"
	textKey       = "text"
)

func (l *logger) Noticef(format string, v ...any) {
	l.log.Debug(serverMessage, textKey, fmt.Sprintf(format, v...))
}
func (l *logger) Warnf(format string, v ...any) {
	l.log.Warn(serverMessage, textKey, fmt.Sprintf(format, v...))
}
func (l *logger) Errorf(format string, v ...any) {
	l.log.Error(serverMessage, textKey, fmt.Sprintf(format, v...))
}
func (l *logger) Debugf(string, ...any) {}
func (l *logger) Tracef(string, ...any) {}

func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error(serverMessage, textKey, text)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fatal = errors.New(text)
}

func (l *logger) fatalError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatal
}

package cli

import (
	"context"
	"log/slog"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
)

// forwardLog returns the logger of a forward. A forward has no way to tell its
// client why a connection failed but the log, so what blames a leg is shown at any
// level. For a proxy that is a matter of course and not worth a warning.
func forwardLog(w command.World, l config.Log) (*slog.Logger, error) {
	threshold := slog.LevelInfo
	if err := threshold.UnmarshalText([]byte(l.Level)); err != nil {
		return nil, &command.UsageError{Err: err}
	}
	if threshold <= slog.LevelInfo {
		return w.Logger(l)
	}
	l.Level = slog.LevelInfo.String()
	log, err := w.Logger(l)
	if err != nil {
		return nil, err
	}
	return slog.New(&blames{Handler: log.Handler(), threshold: threshold}), nil
}

// blames is a handler that lets records pass that name a leg or give a hint, and
// others from a level on.
type blames struct {
	slog.Handler
	threshold slog.Level
}

// Handle implements slog.Handler.
func (b *blames) Handle(ctx context.Context, r slog.Record) error {
	pass := r.Level >= b.threshold
	r.Attrs(func(a slog.Attr) bool {
		pass = pass || a.Key == observe.KeyLeg || a.Key == observe.KeyHint
		return !pass
	})
	if !pass {
		return nil
	}
	return b.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (b *blames) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &blames{Handler: b.Handler.WithAttrs(attrs), threshold: b.threshold}
}

// WithGroup implements slog.Handler.
func (b *blames) WithGroup(name string) slog.Handler {
	return &blames{Handler: b.Handler.WithGroup(name), threshold: b.threshold}
}

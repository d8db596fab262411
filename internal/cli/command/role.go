package command

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"postern.dev/postern/internal/config"
	"postern.dev/postern/internal/observe"
)

// Tools are what a running role is given to be seen by.
type Tools struct {
	Log      *slog.Logger
	Registry *observe.Registry
	Health   *observe.Health
	Version  string
}

// Logger returns the program's logger. Logs go to standard error; standard
// output is for what was asked for.
func (w World) Logger(l config.Log) (*slog.Logger, error) {
	log, err := observe.NewLogger(w.Stderr, observe.LogOptions{Format: l.Format, Level: l.Level, Color: observe.Terminal(w.Stderr, w.Getenv)})
	if err != nil {
		return nil, &UsageError{err}
	}
	return log, nil
}

// RunRole runs a role until it ends, with metrics and health on metricsAddr if
// that is set. Both are served until the role has ended, so that its draining
// can be watched; it counts as not ready from the moment ctx ends.
func RunRole(ctx context.Context, w World, role string, l config.Log, metricsAddr string, run func(context.Context, Tools) error) error {
	log, err := w.Logger(l)
	if err != nil {
		return err
	}
	version := Version()
	tools := Tools{Log: log, Registry: observe.NewRegistry(role, version), Health: observe.NewHealth(), Version: version}
	defer context.AfterFunc(ctx, tools.Health.Drain)()
	if metricsAddr == "" {
		return run(ctx, tools)
	}

	listener, err := observe.Listen(ctx, metricsAddr)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", metricsAddr, err)
	}
	log.Info("serving metrics", "address", listener.Addr().String())
	server := &observe.Server{Listener: listener, Registry: tools.Registry, Health: tools.Health, Log: log}
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Run(serverCtx); err != nil {
			log.Error("metrics are no longer served", "error", err)
		}
	})
	err = run(ctx, tools)
	stopServer()
	wg.Wait()
	return err
}

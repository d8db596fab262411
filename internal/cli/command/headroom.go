package command

import (
	"context"
	"sync"

	"postern.dev/postern/internal/headroom"
)

// WithHeadroom runs a role with a headroom for the garbage collector, unless the
// environment has its own wish.
func WithHeadroom(ctx context.Context, w World, c headroom.Config, run func(context.Context) error) error {
	if w.Getenv("GOGC") != "" {
		return run(ctx)
	}
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { headroom.Keep(keeping, c) })
	defer wg.Wait()
	defer stop()
	return run(ctx)
}

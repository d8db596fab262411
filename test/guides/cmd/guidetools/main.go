// Command guidetools builds the programs of the tests of the guides ahead of them, or those that
// are named, and prints where they are.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"postern.dev/postern/test/guides/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guidetools:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	for _, tool := range tools.All() {
		if len(names) > 0 && !slices.Contains(names, tool.Name) {
			continue
		}
		built, err := tool.Ensure(ctx, logf)
		if err != nil {
			return err
		}
		fmt.Println(built.Path)
	}
	return nil
}

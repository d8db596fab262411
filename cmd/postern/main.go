// Command postern is everything in one program: hub, agent, proxy, and the
// commands that manage and diagnose them.
package main

import (
	"context"
	"os"

	"postern.dev/postern/internal/cli"
	"postern.dev/postern/internal/cli/command"
)

func main() {
	ctx, _ := command.Signals(context.Background()) // os.Exit ends what stop would
	w := command.System()
	os.Exit(command.Execute(ctx, w, cli.New(w)))
}

// Command postern-agent is the agent alone, for machines where every megabyte
// counts. It takes the flags of `postern agent`.
package main

import (
	"context"
	"os"

	"postern.dev/postern/internal/cli/agentcmd"
	"postern.dev/postern/internal/cli/command"
)

func main() {
	ctx, _ := command.Signals(context.Background()) // os.Exit ends what stop would
	w := command.System()
	root := agentcmd.New(w, "postern-agent")
	root.Version = command.Version()
	os.Exit(command.Execute(ctx, w, root))
}

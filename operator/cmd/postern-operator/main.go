// Command postern-operator is the operator for Kubernetes clusters. It makes Proxies work:
// resources that point pods to a private network.
package main

import (
	"context"
	"os"

	"postern.dev/postern/internal/cli/command"
	"postern.dev/postern/operator/cli"
)

func main() {
	ctx, _ := command.Signals(context.Background()) // os.Exit ends what stop would
	w := command.System()
	os.Exit(command.Execute(ctx, w, cli.New(w)))
}

// Command kubebins builds the programs that the Kubernetes tests run, ahead of them, and prints
// the folder that they are in.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"postern.dev/postern/test/kube/bins"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	set, err := bins.Ensure(ctx, func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubebins:", err)
		os.Exit(1)
	}
	fmt.Println(set.Dir())
}

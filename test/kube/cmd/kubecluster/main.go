//go:build linux

// Command kubecluster starts the cluster of the tests and keeps it until it is interrupted, for
// looking around by hand.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"postern.dev/postern/test/kube/cluster"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubecluster:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	c, err := cluster.Start(ctx, cluster.Options{Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.KubectlInside(ctx, "get", "nodes"); err != nil {
		return err
	}
	fmt.Printf("A shell inside: nsenter --target %d --net --mount --pid --uts --ipc\n", c.Pid())
	fmt.Printf("kubectl there:  %s --kubeconfig %s/pki/inside.kubeconfig\n", c.Kubectl(), c.Dir())
	<-ctx.Done()
	return nil
}

//go:build linux

// Command kubecluster starts the cluster of the tests and keeps it until it is interrupted, for
// looking around by hand; with -pair, two.
package main

import (
	"context"
	"flag"
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
	pair := flag.Bool("pair", false, "start two clusters")
	flag.Parse()
	opts := cluster.Options{Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	}}
	if !*pair {
		c, err := cluster.Start(ctx, opts)
		if err != nil {
			return err
		}
		defer c.Close()
		return show(ctx, c)
	}
	p, err := cluster.StartPair(ctx, opts, opts)
	if err != nil {
		return err
	}
	defer p.Close()
	return show(ctx, p.A, p.B)
}

// show says how to get into each cluster, and waits for the end.
func show(ctx context.Context, clusters ...*cluster.Cluster) error {
	for _, c := range clusters {
		if _, err := c.KubectlInside(ctx, "get", "nodes"); err != nil {
			return err
		}
		fmt.Printf("A shell inside: nsenter --target %d --net --mount --pid --uts --ipc\n", c.Pid())
		fmt.Printf("kubectl there:  %s --kubeconfig %s/pki/inside.kubeconfig\n", c.Kubectl(), c.Dir())
	}
	<-ctx.Done()
	return nil
}

// Command bench measures how fast bytes go through Postern, beside references
// that are built into it, and holds the figures against the project's goals.
// Everything runs on loopback; each role is a process of its own. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are what the command line chooses.
type options struct {
	only       string        // figures, comma separated; empty means all
	contenders string        // contenders, comma separated; empty means all
	sample     time.Duration // how long one sample of a rate lasts
	rounds     int           // samples of each figure and contender
	idle       int           // idle streams of the memory figure
	quick      bool
	json       bool
	binary     string // postern executable; empty means build it
	kubectl    string // its executable; empty means the one that test/kube builds
	keep       bool   // keep the folder with the logs
	strict     bool   // a goal that is missed makes the exit code 1
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleCommand {
		if err := runRole(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench role:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, parseOptions())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func parseOptions() options {
	var o options
	var seconds float64
	flag.StringVar(&o.only, "only", "", "measure only these `figures`, comma separated: "+strings.Join(figureNames(), ", "))
	flag.StringVar(&o.contenders, "contenders", "", "measure only these `contenders`, comma separated: "+strings.Join(contenderNames(), ", "))
	flag.Float64Var(&seconds, "seconds", 2, "how long one sample lasts, in `seconds`")
	flag.IntVar(&o.rounds, "rounds", 5, "how many `samples` are taken of each figure and contender")
	flag.IntVar(&o.idle, "idle", 2000, "how many idle `streams` the memory figure opens")
	flag.BoolVar(&o.quick, "quick", false, "one short sample of each, to see that everything works; the figures mean little")
	flag.BoolVar(&o.json, "json", false, "print the result as JSON, with every sample")
	flag.StringVar(&o.binary, "postern", "", "the postern `executable` to measure; built from this checkout when empty")
	flag.StringVar(&o.kubectl, "kubectl", "", "the kubectl `executable`; when empty the one that test/kube builds, which takes long the first time")
	flag.BoolVar(&o.keep, "keep", false, "keep the temporary folder with the logs of all processes")
	flag.BoolVar(&o.strict, "strict", false, "exit with 1 when a goal is missed")
	flag.Parse()
	if o.quick {
		seconds, o.rounds, o.idle = 0.2, 1, min(o.idle, 100)
	}
	o.sample = time.Duration(seconds * float64(time.Second))
	return o
}

// run measures everything that was asked for and prints the report.
func run(ctx context.Context, o options) error {
	if o.rounds < 1 || o.sample <= 0 || o.idle < 1 {
		return errors.New("rounds, seconds and idle must be positive")
	}
	figs, err := pick("figure", figures, o.only, func(f figure) string { return f.name })
	if err != nil {
		return err
	}
	cons, err := pick("contender", contenders, o.contenders, func(c contender) string { return c.name })
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.prepare(ctx, cons); err != nil {
		return err
	}
	res := newResult(o)
	for _, f := range figs {
		if err := b.measure(ctx, f, cons, res); err != nil {
			return err
		}
	}
	res.judge()
	if o.json {
		err = res.writeJSON(os.Stdout)
	} else {
		err = res.writeTables(os.Stdout)
	}
	switch {
	case err != nil:
		return err
	case len(res.Failures) > 0:
		return fmt.Errorf("%d samples failed; see above", len(res.Failures))
	case o.strict && res.short() > 0:
		return fmt.Errorf("%d goals missed", res.short())
	}
	return nil
}

// pick returns the items whose names are listed, in their own order; all of
// them for an empty list.
func pick[T any](what string, all []T, list string, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	wanted := make(map[string]bool)
	for n := range strings.SplitSeq(list, ",") {
		wanted[strings.TrimSpace(n)] = true
	}
	var picked []T
	for _, item := range all {
		if wanted[name(item)] {
			picked = append(picked, item)
			delete(wanted, name(item))
		}
	}
	for n := range wanted {
		return nil, fmt.Errorf("no %s is called %q", what, n)
	}
	return picked, nil
}

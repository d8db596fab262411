//go:build linux

package quickstart_test

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/test/kube/cluster"
)

// reads is how often the consumer read an object of the private cluster.
type reads struct{ good, bad int }

var readsLine = regexp.MustCompile(`msg=reads good=(\d+) bad=(\d+)`)

// reads returns the consumer's last report. The numbers are those of one run of it.
func (w *world) reads(ctx context.Context) (reads, error) {
	log, err := w.consumerLog(ctx)
	if err != nil {
		return reads{}, err
	}
	all := readsLine.FindAllStringSubmatch(log, -1)
	if len(all) == 0 {
		return reads{}, errNot
	}
	var r reads
	last := all[len(all)-1]
	if r.good, err = strconv.Atoi(last[1]); err != nil {
		return r, err
	}
	r.bad, err = strconv.Atoi(last[2])
	return r, err
}

// maxCut is how many reads may fail while pods are replaced. A connection that outlives the time to
// drain is cut, once at the proxy and once at the agent. client-go sends a request again that met
// the end of the connection, but not one that it was just writing (broken pipe): some microseconds
// of the 20 milliseconds between two reads, and one cut of some five hundred in an experiment with
// nothing of ours between client and server. No draining helps there, as nobody between the two can
// end an HTTP/2 connection inside TLS. A gentle end in place of the reset did not help either, and would
// make a cut look like a whole answer to clients that do not check.
const maxCut = 2

// undisturbed does something while the consumer reads, and holds that no read fails but those that
// were being written as their connection was cut, and that some succeed before, meanwhile and after.
func (w *world) undisturbed(t *testing.T, do func()) {
	t.Helper()
	var before reads
	var err error
	eventually(t, "the consumer reads", time.Minute, func(ctx context.Context) error {
		if before, err = w.reads(ctx); err == nil && before.good == 0 {
			err = errNot
		}
		return err
	})
	do()
	meanwhile, err := w.reads(limit(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	var after reads
	eventually(t, "the consumer reads on", time.Minute, func(ctx context.Context) error {
		if after, err = w.reads(ctx); err == nil && after.good < meanwhile.good+20 {
			err = fmt.Errorf("%+v", after)
		}
		return err
	})
	t.Logf("%d reads, %d of them failed", after.good-before.good, after.bad-before.bad)
	if after.bad-before.bad > maxCut || meanwhile.good < before.good+20 {
		log, err := w.pair.A.KubectlInside(limit(t, time.Minute), "logs", "deployment/consumer", "-n", "crossplane-system", "--tail=1000")
		t.Errorf("before %+v, meanwhile %+v, after %+v, %v\n%s", before, meanwhile, after, err, linesWith(log, "level=ERROR"))
	}
}

func linesWith(text, part string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// restart replaces every pod of the proxy, which is in the namespace given, and of the agent, both at
// once, while the consumer reads.
func (w *world) restart(t *testing.T, namespace string) {
	w.undisturbed(t, func() {
		gone := w.replacing(t, w.pair.A, namespace)
		gone2 := w.replacing(t, w.pair.B, "default")
		kubectl(t, w.pair.A, "rollout", "restart", "-n", namespace, "deployment/private-cluster-proxy")
		kubectl(t, w.pair.B, "rollout", "restart", "-n", "default", "deployment/private-network-agent")
		gone()
		gone2()
	})
}

// replacing notes the pods of a namespace, and returns what waits until none of them is left.
func (w *world) replacing(t *testing.T, c *cluster.Cluster, namespace string) (gone func()) {
	t.Helper()
	old := kubectl(t, c, "get", "pods", "-n", namespace, "-o", "name")
	return func() {
		t.Helper()
		eventually(t, "the old pods of "+namespace+" are gone", 2*time.Minute, func(ctx context.Context) error {
			now, err := c.KubectlInside(ctx, "get", "pods", "-n", namespace, "-o", "name")
			if err != nil {
				return err
			}
			for pod := range strings.FieldsSeq(old) {
				if strings.Contains(now, pod) {
					return fmt.Errorf("%s is still there", pod)
				}
			}
			return nil
		})
	}
}

// restarts takes the API servers of both clusters away for a moment, and then the power of both nodes.
// What the consumer watches goes on by itself.
func (w *world) restarts(t *testing.T) {
	ctx := limit(t, 4*time.Minute)
	for _, step := range []struct {
		name    string
		restart func(context.Context) error
	}{
		{"API server of the private cluster", func(ctx context.Context) error { return w.pair.B.RestartAPIServer(ctx) }},
		{"API server of the control plane", func(ctx context.Context) error { return w.pair.A.RestartAPIServer(ctx) }},
		{"node of the control plane", w.pair.A.RestartNode},
		{"node of the private cluster", w.pair.B.RestartNode},
	} {
		began := time.Now()
		if err := step.restart(ctx); err != nil {
			t.Fatal(err)
		}
		w.changes(t, "after the "+step.name)
		t.Logf("%s: %s", step.name, time.Since(began).Round(100*time.Millisecond))
	}
}

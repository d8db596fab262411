//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1api "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"postern.dev/postern/internal/testnet"
)

const (
	// idle is after how much silence the middleboxes cut a connection. Most real ones wait for
	// a minute.
	idle = 20 * time.Second

	// watchFor is how long the watches go on, unless POSTERN_WATCH_FOR says another time.
	watchFor = 45 * time.Second
)

// gaps are the times between events, all of them longer than idle, again and again.
func gaps() []time.Duration {
	return []time.Duration{idle + idle/10, 2 * idle, 4 * idle, 8 * idle, 15 * idle}
}

// testSilentWatches watches for long, through middleboxes that cut connections on which nothing is
// said: between the client and the hub, the agent and the hub, and the agent and the API server.
// No watch may end, and no event be lost.
func testSilentWatches(t *testing.T, w *alone) {
	length := watchFor
	if text := os.Getenv("POSTERN_WATCH_FOR"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("POSTERN_WATCH_FOR: %v", err)
		}
	}
	links := map[string]*testnet.Link{
		"kubectl to hub":      link(t, testnet.Config{Target: w.addr, Idle: idle}),
		"client-go to hub":    link(t, testnet.Config{Target: w.addr, Idle: idle}),
		"agent to hub":        link(t, testnet.Config{Target: w.addr, Idle: idle}),
		"agent to API server": link(t, testnet.Config{Target: w.api.Addr(), Idle: idle}),
	}
	defer func() {
		for name, l := range links {
			if n := l.Idled(); n != 0 {
				t.Errorf("%s: %d of %d connections were silent for %s and cut", name, n, l.Accepted(), idle)
			}
			if l.Delivered(testnet.Down) == 0 {
				t.Errorf("%s: nothing went this way", name)
			}
		}
	}()
	agent := w.startAgent(t, "silent", links["agent to hub"].Addr(), links["agent to API server"].Addr())
	w.waitUntilUseful(t, w.kubectl(t, w.addr, "silent"), agent)
	w.inside(t, "", "create", "namespace", "via-silent")

	follow := w.kubectl(t, links["kubectl to hub"].Addr(), "silent").follow(t, "get", "configmaps", "--watch", "--output-watch-events", "--no-headers")
	library := watchConfigMaps(t, w.config(t, links["client-go to hub"].Addr(), "silent"), "via-silent")

	started, sent := time.Now(), 0
	for end := started.Add(length); ; {
		name := fmt.Sprintf("event-%d", sent)
		w.inside(t, "", "create", "configmap", name, "-n", "via-silent")
		sent++
		at := time.Now()
		if line := follow.next(t); strings.Join(strings.Fields(line)[:2], " ") != "ADDED "+name {
			t.Fatalf("kubectl: %q instead of ADDED %s", line, name)
		}
		if got := library.next(t); got != "ADDED "+name {
			t.Fatalf("client-go: %q instead of ADDED %s", got, name)
		}
		t.Logf("after %s: event %d came to both within %s", time.Since(started).Round(time.Second), sent, time.Since(at).Round(time.Millisecond))
		gap := min(gaps()[(sent-1)%len(gaps())], time.Until(end))
		if gap <= 0 {
			break
		}
		quiet(t, gap, follow)
	}
	if n := library.requests.Load(); n != 1 {
		t.Errorf("client-go asked %d times to watch, which it does again when a watch breaks", n)
	}
	t.Logf("%d events in %s, and as many came to each watch, of which none broke", sent, time.Since(started).Round(time.Second))
}

// quiet waits for a time in which nothing happens.
func quiet(t *testing.T, d time.Duration, follow *stream) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-follow.done:
		t.Fatalf("kubectl ended: %v\n%s", follow.err, follow.stderr.String())
	}
}

// watched is a watch of client-go that begins again where it broke off.
type watched struct {
	requests atomic.Int64 // to watch
	events   <-chan watch.Event
}

// watchConfigMaps watches from now on.
func watchConfigMaps(t *testing.T, config *rest.Config, namespace string) *watched {
	t.Helper()
	w := &watched{}
	observe(config, func(r *http.Request, _ *http.Response) {
		if r.URL.Query().Get("watch") != "" {
			w.requests.Add(1)
		}
	})
	client, err := corev1.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.ConfigMaps(namespace).List(limit(t, quick), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := watchtools.NewRetryWatcherWithContext(t.Context(), list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.ConfigMaps(namespace).Watch(ctx, o)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Stop(); <-watcher.Done() })
	w.events = watcher.ResultChan()
	return w
}

// next is the next event.
func (w *watched) next(t *testing.T) string {
	t.Helper()
	for {
		select {
		case event, ok := <-w.events:
			switch object := event.Object.(type) {
			case *corev1api.ConfigMap:
				return string(event.Type) + " " + object.Name
			default:
				t.Fatalf("client-go: %v, %t", event, ok)
			}
		case <-time.After(quick):
			t.Fatalf("client-go saw no event within %s", quick)
		}
	}
}

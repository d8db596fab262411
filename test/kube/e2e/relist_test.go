//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1api "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"postern.dev/postern/internal/testnet"
)

const (
	// many is how many objects the informer holds.
	many = 5000
	// changed is how many of them are changed, removed and made while it is cut off.
	changed = 100
)

// TestRelist has an informer of client-go hold many objects through the gateway, and cuts it
// off: first for a moment, after which it goes on where it was, and then for so long that the
// cluster has forgotten what came between. It must list again, and end up with all that there is.
func TestRelist(t *testing.T) {
	t.Parallel()
	w := startAlone(t)
	way := link(t, testnet.Config{Target: w.addr})
	agent := w.startAgent(t, "relist", w.addr, w.api.Addr())
	w.waitUntilUseful(t, w.kubectl(t, w.addr, "relist"), agent)
	w.inside(t, "", "create", "namespace", "via-relist")
	direct := configMaps(t, w.admin(t))
	begun := time.Now()
	each(t, 0, many, func(ctx context.Context, i int) error { return create(ctx, direct, i) })
	t.Logf("%d objects made in %s", many, time.Since(begun).Round(time.Millisecond))

	begun = time.Now()
	in := startInformer(t, w.config(t, way.Addr(), "relist"))
	in.waitUntilSame(t, direct)
	t.Logf("%d objects held after %s", many, time.Since(begun).Round(time.Millisecond))

	for range 2 {
		each(t, 0, changed, func(ctx context.Context, i int) error { return change(ctx, direct, i) })
		in.waitUntilSame(t, direct)
		way.Cut() // a watch that has seen nothing would be no reason to go on where it was
	}
	each(t, 0, changed, func(ctx context.Context, i int) error { return change(ctx, direct, i) })
	in.waitUntilSame(t, direct)
	if lists, _ := in.asked(); lists != 1 {
		t.Errorf("the informer listed %d times, although a watch could go on where it was cut", lists)
	}

	way.Freeze()
	each(t, 0, changed, func(ctx context.Context, i int) error { return change(ctx, direct, i) })
	each(t, changed, 2*changed, func(ctx context.Context, i int) error {
		return direct.Delete(ctx, objectName(i), metav1.DeleteOptions{})
	})
	each(t, many, many+changed, func(ctx context.Context, i int) error { return create(ctx, direct, i) })
	begun = time.Now()
	if err := w.api.Forget(limit(t, 2*quick)); err != nil {
		t.Fatal(err)
	}
	t.Logf("API server back, with no history, after %s", time.Since(begun).Round(time.Millisecond))
	w.waitUntilUseful(t, w.kubectl(t, w.addr, "relist"), agent)
	begun = time.Now()
	way.Cut()
	way.Thaw()
	in.waitUntilSame(t, direct)
	t.Logf("all is as it should %s after the way was free", time.Since(begun).Round(time.Millisecond))
	lists, gone := in.asked()
	if lists != 2 || gone == 0 {
		t.Errorf("the informer listed %d times, and was told %d times that what it knew is too old; want a second list for that reason", lists, gone)
	}
	in.seen(t)
}

// admin is the configuration of client-go for the administrator, straight at the API server.
func (w *alone) admin(t *testing.T) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", w.api.Admin())
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

func configMaps(t *testing.T, config *rest.Config) corev1.ConfigMapInterface {
	t.Helper()
	config.ContentType = runtime.ContentTypeProtobuf
	client, err := corev1.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client.ConfigMaps("via-relist")
}

func objectName(i int) string { return fmt.Sprintf("object-%d", i) }

func create(ctx context.Context, to corev1.ConfigMapInterface, i int) error {
	_, err := to.Create(ctx, &corev1api.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: objectName(i)}, Data: map[string]string{"n": "0"}}, metav1.CreateOptions{})
	return err
}

func change(ctx context.Context, to corev1.ConfigMapInterface, i int) error {
	object, err := to.Get(ctx, objectName(i), metav1.GetOptions{})
	if err != nil {
		return err
	}
	object.Data["n"] += "1"
	_, err = to.Update(ctx, object, metav1.UpdateOptions{})
	return err
}

// each calls f for the numbers of a range, several at a time.
func each(t *testing.T, from, to int, f func(context.Context, int) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(limit(t, 4*quick))
	group.SetLimit(32)
	for i := from; i < to; i++ {
		group.Go(func() error { return f(ctx, i) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// informer is an informer of client-go, and what it was told.
type informer struct {
	cache.SharedIndexInformer

	mu                     sync.Mutex
	adds, updates, deletes map[string]int // by name
	lists, gone            int
}

// startInformer starts an informer, which ends with the test.
func startInformer(t *testing.T, config *rest.Config) *informer {
	t.Helper()
	in := &informer{adds: map[string]int{}, updates: map[string]int{}, deletes: map[string]int{}}
	observe(config, func(r *http.Request, response *http.Response) {
		in.mu.Lock()
		defer in.mu.Unlock()
		if query := r.URL.Query(); response.StatusCode == http.StatusOK && (query.Get("watch") == "" || query.Get("sendInitialEvents") != "") {
			in.lists++
		}
	})
	client := configMaps(t, config)
	in.SharedIndexInformer = cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			events, err := client.Watch(ctx, o)
			if err != nil {
				return nil, err
			}
			return watch.Filter(events, in.tooOld), nil
		},
	}, &corev1api.ConfigMap{}, 0, nil)
	if _, err := in.AddEventHandler(in); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { in.RunWithContext(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return in
}

// tooOld counts how often a watch has said that it knows of older times no more.
func (in *informer) tooOld(event watch.Event) (watch.Event, bool) {
	if event.Type == watch.Error && apierrors.IsResourceExpired(apierrors.FromObject(event.Object)) {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.gone++
	}
	return event, true
}

// OnAdd implements cache.ResourceEventHandler.
func (in *informer) OnAdd(o any, _ bool) { in.count(in.adds, o) }

// OnUpdate implements cache.ResourceEventHandler. After a list it is called for what has not
// changed, too.
func (in *informer) OnUpdate(old, o any) {
	if old.(*corev1api.ConfigMap).ResourceVersion != o.(*corev1api.ConfigMap).ResourceVersion {
		in.count(in.updates, o)
	}
}

// OnDelete implements cache.ResourceEventHandler.
func (in *informer) OnDelete(o any) {
	if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = unknown.Obj
	}
	in.count(in.deletes, o)
}

func (in *informer) count(kind map[string]int, o any) {
	in.mu.Lock()
	defer in.mu.Unlock()
	kind[o.(*corev1api.ConfigMap).Name]++
}

// asked is how often the informer has listed, and has been told that it knows nothing any more.
func (in *informer) asked() (lists, gone int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.lists, in.gone
}

// waitUntilSame waits until the informer holds what there is, in the version that there is.
func (in *informer) waitUntilSame(t *testing.T, direct corev1.ConfigMapInterface) {
	t.Helper()
	ctx := limit(t, 2*quick)
	all, err := direct.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for _, object := range all.Items {
		want[object.Name] = object.ResourceVersion
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got := make(map[string]string)
		for _, o := range in.GetStore().List() {
			object := o.(*corev1api.ConfigMap)
			got[object.Name] = object.ResourceVersion
		}
		if maps.Equal(got, want) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the informer holds %d objects, and not the %d that there are", len(got), len(want))
		}
	}
}

// seen checks that the informer's handlers were told of each object what happened to it, once.
func (in *informer) seen(t *testing.T) {
	t.Helper()
	ctx := limit(t, quick)
	for { // handlers are told after the store is written
		in.mu.Lock()
		adds, deletes := len(in.adds), len(in.deletes)
		in.mu.Unlock()
		if adds >= many+changed && deletes >= changed {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d of %d objects were added, %d of %d deleted", adds, many+changed, deletes, changed)
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range many + changed {
		name, updates, deletes := objectName(i), 0, 0
		switch {
		case i < changed:
			updates = 4
		case i < 2*changed:
			deletes = 1
		}
		if in.adds[name] != 1 || in.updates[name] != updates || in.deletes[name] != deletes {
			t.Errorf("%s: added %d times, changed %d times, deleted %d times; want 1, %d, %d", name, in.adds[name], in.updates[name], in.deletes[name], updates, deletes)
		}
	}
}

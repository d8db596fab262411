// Command consumer is a controller of the tests: an ordinary program with client-go that manages
// objects of another cluster with a kubeconfig from a Secret, as Crossplane's provider for
// Kubernetes does. It knows nothing of Postern.
//
// It copies each ConfigMap of its namespace that has the label "copy" to the namespace default of
// the other cluster, watches the copies, and writes what it sees back as annotations. Beside that
// it reads a copy all the time, and counts how often that failed.
//
//	consumer -secret private-cluster-kubeconfig
//
// With -look it is a provider that reads only, and says each time what it may, see look.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The annotations that it writes.
const (
	seenAnnotation  = "consumer.test/seen"  // the copy's data, as the watch showed it
	errorAnnotation = "consumer.test/error" // why the last attempt failed
)

const (
	copyLabel  = "copy"
	remoteHome = "default"
	requestMax = 10 * time.Second
)

func main() {
	secret := flag.String("secret", "private-cluster-kubeconfig", "the `name` of the Secret with the kubeconfig")
	namespace := flag.String("namespace", os.Getenv("POD_NAMESPACE"), "the `namespace` of Secret and ConfigMaps")
	pace := flag.Duration("pace", 20*time.Millisecond, "how long to wait between two reads")
	onlyLook := flag.Bool("look", false, "only list what there is, and say what came of it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	for ctx.Err() == nil {
		if err := run(ctx, log, *namespace, *secret, *pace, *onlyLook); err != nil {
			log.Error("start again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// consumer is one run with one kubeconfig.
type consumer struct {
	log       *slog.Logger
	namespace string
	own       kubernetes.Interface
	remote    kubernetes.Interface
	copied    map[string]string // what was copied last, by name; of copyOut alone
}

func run(ctx context.Context, log *slog.Logger, namespace, secret string, pace time.Duration, onlyLook bool) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	own, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	s, err := own.CoreV1().Secrets(namespace).Get(ctx, secret, metav1.GetOptions{})
	if err != nil {
		return err
	}
	remoteConfig, err := clientcmd.RESTConfigFromKubeConfig(s.Data["kubeconfig"])
	if err != nil {
		return err
	}
	remoteConfig.QPS = -1 // as fast as it is told to
	remote, err := kubernetes.NewForConfig(remoteConfig)
	if err != nil {
		return err
	}
	if onlyLook {
		return look(ctx, log, remote, remoteConfig.BearerTokenFile, pace)
	}
	c := &consumer{log: log, namespace: namespace, own: own, remote: remote, copied: map[string]string{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 3)
	go func() { ended <- c.follow(ctx, own, namespace, c.copyOut) }()
	go func() { ended <- c.follow(ctx, remote, remoteHome, c.writeBack) }()
	go func() { ended <- c.read(ctx, pace) }()
	err = <-ended
	cancel()
	return errors.Join(err, <-ended, <-ended)
}

// follow calls f for each labelled ConfigMap of a namespace, now and whenever it changes. It goes
// on after errors until ctx ends.
func (c *consumer) follow(ctx context.Context, client kubernetes.Interface, namespace string, f func(context.Context, *corev1.ConfigMap) error) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	for ctx.Err() == nil {
		err := func() error {
			bounded, cancel := context.WithTimeout(ctx, requestMax)
			defer cancel()
			list, err := maps.List(bounded, metav1.ListOptions{LabelSelector: copyLabel})
			if err != nil {
				return err
			}
			for i := range list.Items {
				if err := f(ctx, &list.Items[i]); err != nil {
					return err
				}
			}
			w, err := maps.Watch(ctx, metav1.ListOptions{LabelSelector: copyLabel, ResourceVersion: list.ResourceVersion})
			if err != nil {
				return err
			}
			defer w.Stop()
			return each(ctx, w, f)
		}()
		if err != nil {
			c.log.Error("follow ConfigMaps", "namespace", namespace, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
	return ctx.Err()
}

// each calls f for what a watch shows.
func each(ctx context.Context, w watch.Interface, f func(context.Context, *corev1.ConfigMap) error) error {
	for event := range w.ResultChan() {
		m, ok := event.Object.(*corev1.ConfigMap)
		switch {
		case !ok:
			return fmt.Errorf("the watch ended: %v", statusOf(event.Object))
		case event.Type == watch.Deleted:
		default:
			if err := f(ctx, m); err != nil {
				return err
			}
		}
	}
	return errors.New("the watch ended")
}

func statusOf(o runtime.Object) string {
	if s, ok := o.(*metav1.Status); ok {
		return s.Message
	}
	return fmt.Sprintf("%T", o)
}

// copyOut makes or changes the copy in the other cluster, when the original has changed. That it
// failed is written to the original, and tried again with the next look.
func (c *consumer) copyOut(ctx context.Context, m *corev1.ConfigMap) error {
	if c.copied[m.Name] == fmt.Sprint(m.Data) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	wanted := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: m.Name, Labels: map[string]string{copyLabel: m.Labels[copyLabel]}},
		Data:       m.Data,
	}
	maps := c.remote.CoreV1().ConfigMaps(remoteHome)
	existing, err := maps.Get(ctx, m.Name, metav1.GetOptions{})
	switch {
	case err == nil:
		existing.Data = m.Data
		_, err = maps.Update(ctx, existing, metav1.UpdateOptions{})
	default:
		_, err = maps.Create(ctx, wanted, metav1.CreateOptions{})
	}
	if err == nil {
		c.copied[m.Name] = fmt.Sprint(m.Data)
		return nil
	}
	if m.Annotations[errorAnnotation] == err.Error() {
		return err
	}
	return errors.Join(err, c.annotate(ctx, m.Name, errorAnnotation, err.Error()))
}

// writeBack says on the original what the other cluster's watch showed.
func (c *consumer) writeBack(ctx context.Context, m *corev1.ConfigMap) error {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	return c.annotate(ctx, m.Name, seenAnnotation, m.Data["message"])
}

func (c *consumer) annotate(ctx context.Context, name, key, value string) error {
	maps := c.own.CoreV1().ConfigMaps(c.namespace)
	m, err := maps.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // somebody else's copy
	}
	if err != nil || m.Annotations[key] == value {
		return err
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[key] = value
	_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	return err
}

// read reads one object of the other cluster again and again, and says each second how that went.
func (c *consumer) read(ctx context.Context, pace time.Duration) error {
	var good, bad int
	var longest time.Duration
	tick := time.NewTicker(pace)
	defer tick.Stop()
	report := time.NewTicker(time.Second)
	defer report.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-report.C:
			c.log.Info("reads", "good", strconv.Itoa(good), "bad", strconv.Itoa(bad), "longest", longest)
			longest = 0
		case <-tick.C:
			began := time.Now()
			bounded, cancel := context.WithTimeout(ctx, requestMax)
			_, err := c.remote.CoreV1().Namespaces().Get(bounded, remoteHome, metav1.GetOptions{})
			cancel()
			longest = max(longest, time.Since(began))
			if err != nil {
				bad++
				c.log.Error("read", "error", err, "after", time.Since(began))
			} else {
				good++
			}
		}
	}
}

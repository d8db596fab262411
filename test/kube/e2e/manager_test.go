//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1api "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	runtimeclient "sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"postern.dev/postern/dialer"
	"postern.dev/postern/dialer/kube"
	"postern.dev/postern/internal/testnet"
)

const (
	// managerName is the environment variable that makes a manager of this program; its value
	// is the manager's name. The others say where it works.
	managerName  = "POSTERN_TEST_MANAGER"
	managerHub   = "POSTERN_TEST_MANAGER_HUB"
	managerCA    = "POSTERN_TEST_MANAGER_CA"
	managerToken = "POSTERN_TEST_MANAGER_TOKEN"

	// managed is the namespace that managers look after, and the agent of its cluster.
	managed      = "via-managed"
	managedAgent = "managed"
)

// The leader's lease. A leader that cannot renew it steps down before another takes over.
const (
	leaseTime = 10 * time.Second
	renewTime = 8 * time.Second
	retryTime = time.Second
)

func TestMain(m *testing.M) {
	if name := os.Getenv(managerName); name != "" {
		if err := manage(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// manage is a manager of controller-runtime. It signs each ConfigMap with its name, as long as it
// leads.
func manage(name string) error {
	ctx := ctrl.SetupSignalHandler()
	ctrl.SetLogger(logr.Discard())
	gateway, err := dialer.NewGateway(ctx, dialer.Options{
		ConnectURL: "tls://" + os.Getenv(managerHub), CAFile: os.Getenv(managerCA), TokenFile: os.Getenv(managerToken),
	})
	if err != nil {
		return err
	}
	config, err := kube.Gateway(gateway, managedAgent)
	if err != nil {
		return err
	}
	lease, renew, retry := leaseTime, renewTime, retryTime
	manager, err := ctrl.NewManager(config, ctrl.Options{
		LeaderElection: true, LeaderElectionID: "postern-managers", LeaderElectionNamespace: managed,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache:   cache.Options{DefaultNamespaces: map[string]cache.Config{managed: {}}},
	})
	if err != nil {
		return err
	}
	client := manager.GetClient()
	err = ctrl.NewControllerManagedBy(manager).For(&corev1api.ConfigMap{}).Complete(reconcile.Func(func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
		var object corev1api.ConfigMap
		if err := client.Get(ctx, r.NamespacedName, &object); err != nil {
			return reconcile.Result{}, runtimeclient.IgnoreNotFound(err)
		}
		if object.Data["by"] != "" {
			return reconcile.Result{}, nil
		}
		object.Data = map[string]string{"by": name}
		return reconcile.Result{}, client.Update(ctx, &object)
	}))
	if err != nil {
		return err
	}
	go func() { // ends with the program
		<-manager.Elected()
		fmt.Println("leads")
	}()
	return manager.Start(ctx)
}

// testManagers runs managers outside, whose leader election is inside the private cluster. The
// leader is killed, and the next one cut off: another leads each time, and goes on with the work.
func testManagers(t *testing.T, w *alone) {
	agent := w.startAgent(t, managedAgent, w.addr, w.api.Addr())
	w.waitUntilUseful(t, w.kubectl(t, w.addr, managedAgent), agent)
	w.inside(t, "", "create", "namespace", managed)

	first := w.startManager(t, "first", w.addr)
	leads(t, first)
	way := link(t, testnet.Config{Target: w.addr})
	second := w.startManager(t, "second", way.Addr())
	w.signed(t, "one", "first")

	started := time.Now()
	_ = first.cmd.Process.Kill()
	leads(t, second)
	t.Logf("the second leads %s after the first was killed", time.Since(started).Round(100*time.Millisecond))
	w.signed(t, "two", "second")

	third := w.startManager(t, "third", w.addr)
	started = time.Now()
	way.Refuse(true)
	way.Cut()
	if stderr, err := second.wait(t, 2*leaseTime+quick); err == nil {
		t.Errorf("the second ended well, although it could not renew its lease:\n%s", stderr)
	} else {
		t.Logf("the second stepped down %s after it was cut off: %s", time.Since(started).Round(100*time.Millisecond), stderr)
	}
	leads(t, third)
	t.Logf("the third leads %s after the second was cut off", time.Since(started).Round(100*time.Millisecond))
	w.signed(t, "three", "third")

	agent.Kill()
	agent = w.startAgent(t, managedAgent, w.addr, w.api.Addr())
	w.waitUntilUseful(t, w.kubectl(t, w.addr, managedAgent), agent)
	fourth := w.startManager(t, "fourth", w.addr) // if the third could not renew its lease
	w.signed(t, "four", "third", "fourth")
	select {
	case <-third.done:
		leads(t, fourth)
	default:
	}
}

// startManager starts a manager that reaches the hub at an address.
func (w *alone) startManager(t *testing.T, name, hub string) *stream {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), proxyVariables),
		managerName+"="+name, managerHub+"="+hub, managerCA+"="+w.caFile(), managerToken+"="+w.robotToken())
	return follow(t, cmd)
}

func leads(t *testing.T, manager *stream) {
	t.Helper()
	if line := manager.next(t); line != "leads" {
		t.Fatalf("the manager says %q", line)
	}
}

// signed makes an object, and wants one of some managers to sign it.
func (w *alone) signed(t *testing.T, name string, by ...string) {
	t.Helper()
	w.inside(t, "", "create", "configmap", name, "-n", managed)
	w.inside(t, "", "wait", "configmap/"+name, "-n", managed, "--for=jsonpath={.data.by}", "--timeout=40s")
	if got := w.inside(t, "", "get", "configmap", name, "-n", managed, "-o", "jsonpath={.data.by}"); !slices.Contains(by, got) {
		t.Errorf("%s was signed by %q, want one of %q", name, got, by)
	}
}

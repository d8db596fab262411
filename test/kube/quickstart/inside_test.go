//go:build linux

package quickstart_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/test/kube/cluster"
)

// Ports of the host under which a load balancer would have what runs inside the control plane.
const (
	insidePort = "4223"
	issuerPort = "8443"
)

const (
	hubHome = "postern-hub"
	tenant  = "tenant" // organization of the hub inside, and namespace of its Proxies
	// passwords is the file of the hub's own proxy, as somebody left it: of these lines one is of use.
	passwords = "# by hand\nnonsense\nalice:secret agent=lab for=ever\nbob:secret agent=lab\n"
)

// hubVolume is where the hub of the chart keeps its state.
const hubVolume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: hub}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  claimRef: {namespace: postern-hub, name: data-postern-hub-0}
  hostPath: {path: %s}
`

// inside is a hub and an issuer that run inside the control plane, from their chart and from the guide.
// For a while the operator's hub is the one inside, and its Proxies use that hub's own proxy; tokens are
// the issuer's; and the agent of the private cluster works for an organization of each hub. The quick
// start's Proxy names its hub itself then, and goes on as it was.
func (w *world) inside(t *testing.T) {
	w.followIdentity(t)
	agentID := kubectl(t, w.pair.A, "get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.agentID}")
	began := time.Now()
	group, ctx := errgroup.WithContext(limit(t, 3*time.Minute))
	w.prepareHub(t)
	trust := w.prepareIssuer(t)
	group.Go(func() error { return w.hubInside(ctx) })
	group.Go(func() error {
		_, err := w.pair.A.KubectlInside(ctx, "rollout", "status", "deployment/postern-issuer", "-n", "postern-system", "--timeout=90s")
		return err
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("hub and issuer run: %s", time.Since(began).Round(100*time.Millisecond))
	w.forward(t, insidePort, w.pair.A, w.service(t, hubHome, "postern-hub")+":4222")
	w.forward(t, issuerPort, w.pair.A, w.service(t, "postern-system", "postern-issuer")+":443")
	w.trust(t, trust) // now that the issuer can be asked: the API server is slow to try again
	w.tenantOf(t)
	w.ownHub(t, true)

	group, ctx = errgroup.WithContext(limit(t, 3*time.Minute))
	group.Go(func() error { return w.operatorOfTheHubInside(ctx, t) })
	group.Go(func() error { return w.agentOfTwo(ctx, t) })
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("operator and agent are changed: %s", time.Since(began).Round(100*time.Millisecond))
	t.Run("issuer", w.issuerInside)
	t.Run("hub's own proxy", func(t *testing.T) { w.hubsOwnProxy(t, agentID) })

	group, ctx = errgroup.WithContext(limit(t, 2*time.Minute))
	group.Go(func() error {
		_, err := w.helm(ctx, w.pair.A, "rollback", "postern-operator", "-n", "postern-system", "--wait", "--timeout", "90s")
		return err
	})
	group.Go(func() error {
		_, err := w.helm(ctx, w.pair.B, "rollback", "private-network-agent", "-n", "default", "--wait", "--timeout", "90s")
		return err
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	w.ownHub(t, false)
	w.trust(t, nobody)
	w.changes(t, "after the hub inside")
	w.ended(t)
	kubectl(t, w.pair.A, "delete", "namespace", tenant, hubHome, "--wait=false")
	kubectl(t, w.pair.A, "delete", "persistentvolume", "hub", "--wait=false")
	kubectl(t, w.pair.A, "delete", "deployment/postern-issuer", "service/postern-issuer", "serviceaccount/postern-issuer", "role/postern-issuer", "rolebinding/postern-issuer",
		"configmap/postern-issuer", "secret/postern-issuer-tls", "secret/postern-issuer-keys", "configmap/issuer-ca", "-n", "postern-system")
	kubectl(t, w.pair.B, "delete", "configmap/of-tenant", "secret/tenant-token", "-n", "default")
	t.Logf("all of it: %s", time.Since(began).Round(100*time.Millisecond))
}

// ended waits until no pod of proxy or agent is ending any more.
func (w *world) ended(t *testing.T) {
	t.Helper()
	for _, c := range []*cluster.Cluster{w.pair.A, w.pair.B} {
		eventually(t, "no pod is ending", time.Minute, func(ctx context.Context) error {
			out, err := c.KubectlInside(ctx, "get", "pods", "-n", "default", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}")
			if err == nil && out != "" {
				err = fmt.Errorf("some are since %s", out)
			}
			return err
		})
	}
}

// prepareHub makes what the chart of the hub finds: a volume, and the Secret of its proxy's passwords.
func (w *world) prepareHub(t *testing.T) {
	t.Helper()
	volume := filepath.Join(w.pair.A.Dir(), "hub")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(volume, 65532, 65532); err != nil { // as fsGroup does with other volumes
		t.Fatal(err)
	}
	w.apply(t, fmt.Sprintf(hubVolume, volume))
	kubectl(t, w.pair.A, "create", "namespace", hubHome)
	kubectl(t, w.pair.A, "create", "secret", "generic", "proxy-passwords", "-n", hubHome, "--from-literal=credentials="+passwords)
}

// hubInside installs the hub from its chart, and runs the chart's test.
func (w *world) hubInside(ctx context.Context) error {
	args := []string{"upgrade", "--install", "postern-hub", filepath.Join(w.root, "charts", "postern-hub"), "-n", hubHome, "--wait", "--timeout", "90s"}
	for _, value := range []string{
		"image.tag=" + version, "image.pullPolicy=Never", "hub.names={" + w.hubHost + "}", "hub.drainTimeout=1s",
		"proxy.enabled=true", "proxy.credentialsSecret=proxy-passwords",
		"issuer.url=https://" + net.JoinHostPort(w.hubHost, insidePort), "issuer.managedKeysSecret=hub-keys",
	} {
		args = append(args, "--set", value)
	}
	if _, err := w.helm(ctx, w.pair.A, args...); err != nil {
		return err
	}
	if _, err := w.helm(ctx, w.pair.A, "test", "postern-hub", "-n", hubHome, "--timeout", "60s"); err != nil {
		return err
	}
	keys, err := w.pair.A.KubectlInside(ctx, "get", "secret", "hub-keys", "-n", hubHome, "-o", "jsonpath={.data}")
	if err == nil && !strings.Contains(keys, "keys.json") {
		err = fmt.Errorf("the Secret of the hub's issuer holds %.100s", keys)
	}
	return err
}

// service is the address of a Service of the control plane.
func (w *world) service(t *testing.T, namespace, name string) string {
	t.Helper()
	return kubectl(t, w.pair.A, "get", "service", name, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}")
}

// atHub runs the program in the hub's pod, as its administrator.
func (w *world) atHub(t *testing.T, args ...string) string {
	t.Helper()
	return kubectl(t, w.pair.A, append([]string{"exec", "postern-hub-0", "-n", hubHome, "--", "postern"}, args...)...)
}

// tenantOf makes the organization of the hub inside, and puts a robot's token into both clusters.
func (w *world) tenantOf(t *testing.T) {
	t.Helper()
	w.atHub(t, "organization", "create", tenant)
	w.atHub(t, "robot", "create", "machines", "-a", tenant)
	token := filepath.Join(w.dir, tenant+".json")
	if err := os.WriteFile(token, []byte(w.atHub(t, "robot", "token", "create", "machines", "one", "-a", tenant, "-f", "-")), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.A, "create", "namespace", tenant)
	kubectl(t, w.pair.A, "create", "secret", "generic", "robot-token", "-n", tenant, "--from-file=token="+token)
	kubectl(t, w.pair.B, "create", "secret", "generic", "tenant-token", "-n", "default", "--from-file=token="+token)
}

// ownHub has the quick start's Proxy name its hub itself, or not.
func (w *world) ownHub(t *testing.T, own bool) {
	t.Helper()
	var hub any
	if own {
		hub = map[string]string{"connectUrl": "tls://" + w.hubHost, "organization": "default", "caBundle": readFile(t, w.caFile())}
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"hub": hub}})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, w.pair.A, "patch", "proxy", "private-cluster", "-n", "default", "--type=merge", "-p", string(patch))
}

// operatorOfTheHubInside makes the hub inside the operator's, and its proxy that of Proxies, and the issuer
// inside the one that makes tokens.
func (w *world) operatorOfTheHubInside(ctx context.Context, t *testing.T) error {
	args := []string{"upgrade", "postern-operator", filepath.Join(w.root, "charts", "postern-operator"), "-n", "postern-system", "--reuse-values", "--wait", "--timeout", "90s",
		"--set-file", "hub.ca.pem=" + filepath.Join(w.pair.A.Dir(), "hub", "hub", "ca.crt")}
	for _, value := range []string{
		"hub.connectUrl=tls://postern-hub." + hubHome + ".svc", "hub.organization=" + tenant,
		"hub.proxy.service=postern-hub-proxy." + hubHome + ":3128", "hub.proxy.credentialsSecret=" + hubHome + "/proxy-passwords",
		"identity.controlPlane=prod-1", "identity.organization=default", "identity.tokenSecret=", "identity.serviceAccountAudience=postern-issuer",
		"identity.url=" + w.insideIssuer(), "identity.caConfigMap=issuer-ca",
	} {
		args = append(args, "--set", value)
	}
	_, err := w.helm(ctx, w.pair.A, args...)
	return err
}

var pinOfHub = regexp.MustCompile(`"ca_pin":"(sha256:[0-9a-f]+)"`)

// agentOfTwo has the quick start's agent work for an organization of the hub inside, too.
func (w *world) agentOfTwo(ctx context.Context, t *testing.T) error {
	log, err := w.pair.A.KubectlInside(ctx, "logs", "postern-hub-0", "-n", hubHome)
	if err != nil {
		return err
	}
	pin := pinOfHub.FindStringSubmatch(log)
	if pin == nil {
		return fmt.Errorf("the hub does not tell its pin:\n%s", log)
	}
	values := filepath.Join(t.TempDir(), "values.yaml")
	err = os.WriteFile(values, fmt.Appendf(nil, `agent:
  drainTimeout: 3s
  organization: ""
  tokenSecret: ""
  organizations:
  - {organization: default, tokenSecret: robot-token, allow: [kubernetes]}
  - {organization: %s, connectUrl: "tls://%s:%s", caPin: %q, tokenSecret: tenant-token, allow: [kubernetes]}
`, tenant, w.hubHost, insidePort, pin[1]), 0o600)
	if err != nil {
		return err
	}
	_, err = w.helm(ctx, w.pair.B, "upgrade", "private-network-agent", filepath.Join(w.root, "charts", "private-network-agent"), "-n", "default",
		"--reuse-values", "-f", values, "--wait", "--timeout", "90s")
	return err
}

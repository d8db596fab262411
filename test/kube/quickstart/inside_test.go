//go:build linux

package quickstart_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"postern.dev/postern/test/kube/pki"
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
	w.prepareIssuer(t)
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
	kubectl(t, w.pair.A, "delete", "namespace", tenant, hubHome, "--wait=false")
	kubectl(t, w.pair.A, "delete", "persistentvolume", "hub", "--wait=false")
	kubectl(t, w.pair.A, "delete", "deployment/postern-issuer", "service/postern-issuer", "serviceaccount/postern-issuer", "role/postern-issuer", "rolebinding/postern-issuer",
		"configmap/postern-issuer", "secret/postern-issuer-tls", "secret/postern-issuer-keys", "configmap/issuer-ca", "-n", "postern-system")
	kubectl(t, w.pair.B, "delete", "configmap/of-tenant", "secret/tenant-token", "-n", "default")
	t.Logf("all of it: %s", time.Since(began).Round(100*time.Millisecond))
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

// tenantProxies are two Proxies that use the hub's own proxy, of which the agent of the second is nowhere.
const tenantProxies = `
{apiVersion: postern.dev/v1alpha1, kind: Proxy, metadata: {name: one, namespace: tenant}, spec: {agentID: %s,
  secretRef: {name: robot-token, key: token}, podSelector: {matchLabels: {pkg.crossplane.io/provider: provider-tenant}}}}
---
{apiVersion: postern.dev/v1alpha1, kind: Proxy, metadata: {name: two, namespace: tenant}, spec: {agentID: nowhere,
  secretRef: {name: robot-token, key: token}, podSelector: {matchLabels: {pkg.crossplane.io/provider: nobody}}}}
`

// hubsOwnProxy has a Proxy reach the private cluster through the hub's own proxy, by the agent that works
// for another organization of another hub at the same time. Another Proxy's password is no good for that
// agent, and its own is none when the Proxy is gone. That the tenant loses agent and robot is nothing to the
// other organization's consumer.
func (w *world) hubsOwnProxy(t *testing.T, agentID string) {
	began := time.Now()
	w.apply(t, fmt.Sprintf(tenantProxies, agentID))
	w.copyKubeconfig(t, tenant)
	w.apply(t, strings.NewReplacer("crossplane-system", tenant, "provider-kubernetes", "provider-tenant", "test-configmap", "of-tenant").Replace(consumerObjects))
	w.tenantSays(t, "one", "Connected")
	t.Logf("connected: %s", time.Since(began).Round(100*time.Millisecond))
	one, two := w.password(t, "one"), w.password(t, "two")
	const api = "kubernetes.default.svc.cluster.local:443"
	if got, err := w.connect(t, agentID, one, api); err != nil || got != http.StatusOK {
		t.Errorf("with the password of a Proxy that is Connected: %d, %v", got, err)
	}
	eventually(t, "the ConfigMap of the tenant is in the private cluster", time.Minute, func(ctx context.Context) error {
		_, err := w.pair.B.KubectlInside(ctx, "get", "configmap", "of-tenant", "-n", "default")
		return err
	})
	if out := kubectl(t, w.pair.A, "get", "deployment,pods", "-n", tenant, "-o", "name"); strings.Contains(out, "proxy") {
		t.Errorf("a Proxy of the hub's own proxy has pods:\n%s", out)
	}
	w.changes(t, "beside another organization")

	w.tenantSays(t, "two", "AgentNotConnected")
	w.answers(t, "nowhere", two, api, http.StatusServiceUnavailable)
	w.answers(t, "bob", "secret", api, http.StatusServiceUnavailable)
	for _, try := range []struct {
		what, user, password, target string
		want                         int
	}{
		{"another Proxy's password", agentID, two, api, http.StatusProxyAuthRequired},
		{"another Proxy's password, with the organization", tenant + "/" + agentID, two, api, http.StatusProxyAuthRequired},
		{"the agent by a host's name", "nowhere", two, "kubernetes." + agentID + ".postern.internal:443", http.StatusForbidden},
		{"a line that cannot be used", "alice", "secret", api, http.StatusProxyAuthRequired},
		{"no password", "", "", api, http.StatusProxyAuthRequired},
	} {
		if got, err := w.connect(t, try.user, try.password, try.target); err != nil || got != try.want {
			t.Errorf("%s: %d, want %d, %v", try.what, got, try.want, err)
		}
	}

	w.undisturbed(t, func() {
		kubectl(t, w.pair.A, "delete", "proxy", "one", "-n", tenant, "--timeout=50s")
		w.answers(t, agentID, one, api, http.StatusProxyAuthRequired)
		w.answers(t, "nowhere", two, api, http.StatusServiceUnavailable)
		w.atHub(t, "robot", "delete", "machines", "-a", tenant)
		w.tenantSays(t, "two", "TokenRefused")
		w.answers(t, "nowhere", two, api, http.StatusProxyAuthRequired)
		w.answers(t, "bob", "secret", api, http.StatusServiceUnavailable)
	})
	kubectl(t, w.pair.A, "delete", "proxy", "two", "-n", tenant, "--timeout=50s")
	secret := kubectl(t, w.pair.A, "get", "secret", "proxy-passwords", "-n", hubHome, "-o", "go-template={{.data.credentials | base64decode}}")
	if secret != passwords {
		t.Errorf("the file of passwords is %q, and was %q", secret, passwords)
	}
	t.Logf("all of it: %s", time.Since(began).Round(100*time.Millisecond))
}

// password is that of a Proxy of the tenant.
func (w *world) password(t *testing.T, proxy string) string {
	t.Helper()
	return kubectl(t, w.pair.A, "get", "secret", proxy+"-proxy", "-n", tenant, "-o", "go-template={{.data.password | base64decode}}")
}

// tenantSays waits until the condition Ready of a Proxy has a reason.
func (w *world) tenantSays(t *testing.T, proxy, reason string) {
	t.Helper()
	eventually(t, "the Proxy "+proxy+" says "+reason, 90*time.Second, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "get", "proxies.postern.dev", proxy, "-n", tenant, "-o",
			`jsonpath={.status.conditions[?(@.type=="Ready")].reason} {.status.conditions[?(@.type=="Ready")].message}`)
		if err == nil && !strings.HasPrefix(out, reason+" ") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
}

// answers waits until the hub's own proxy gives an answer: its node brings it another file within seconds.
func (w *world) answers(t *testing.T, user, password, target string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s at the hub's own proxy gets %d", user, want), time.Minute, func(context.Context) error {
		got, err := w.connect(t, user, password, target)
		if err == nil && got != want {
			err = fmt.Errorf("it gets %d", got)
		}
		return err
	})
}

// connect asks the hub's own proxy, inside the control plane, for a connection, and returns its answer.
func (w *world) connect(t *testing.T, user, password, target string) (status int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := w.pair.A.DialContext(ctx, "tcp", net.JoinHostPort(w.service(t, hubHome, "postern-hub-proxy"), "3128"))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, err
	}
	login := ""
	if user != "" {
		login = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)) + "\r\n"
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n%[2]s\r\n", target, login); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return 0, err
	}
	_ = res.Body.Close()
	return res.StatusCode, nil
}

func (w *world) insideIssuer() string { return "https://" + net.JoinHostPort(w.hubHost, issuerPort) }

// prepareIssuer applies what the guide has for an issuer in Kubernetes, with what it is to find: its
// settings, the keys of the cluster's service accounts, and a certificate.
func (w *world) prepareIssuer(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.New(filepath.Join(dir, "ca"), "issuer")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue("tls", pki.Subject{Name: "issuer", Hosts: []string{w.hubHost}})
	if err != nil {
		t.Fatal(err)
	}
	settings := identityYAML(t, "callers:", "https://id.example.org", w.insideIssuer(), "account: acme", "account: default")
	var kept []string
	for line := range strings.Lines(settings) {
		if !strings.HasPrefix(line, "data:") && !strings.HasPrefix(line, "listen:") { // as the guide says
			kept = append(kept, line)
		}
	}
	for name, text := range map[string]string{
		"issuer.yaml": strings.Join(kept, ""), "prod-1-keys.json": kubectl(t, w.pair.A, "get", "--raw", "/openid/v1/jwks"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, w.pair.A, "create", "configmap", "postern-issuer", "-n", "postern-system", "--from-file="+filepath.Join(dir, "issuer.yaml"), "--from-file="+filepath.Join(dir, "prod-1-keys.json"))
	kubectl(t, w.pair.A, "create", "secret", "tls", "postern-issuer-tls", "-n", "postern-system", "--cert="+pair.CertFile, "--key="+pair.KeyFile)
	kubectl(t, w.pair.A, "create", "configmap", "issuer-ca", "-n", "postern-system", "--from-file=ca.crt="+authority.CertFile())
	w.apply(t, identityYAML(t, "name: postern-issuer, namespace: postern-system", "postern:v0.1.0", "postern:"+version))
	ca := strings.ReplaceAll(strings.TrimSpace(string(authority.CertPEM())), "\n", "\n      ")
	w.trust(t, identityYAML(t, "kind: AuthenticationConfiguration", "https://id.example.org", w.insideIssuer(), "# …", ca))
}

// issuerInside has a provider reach the private cluster with a token of the issuer inside, which the operator
// asked for as its service account. The private cluster trusts that issuer and no other by now.
func (w *world) issuerInside(t *testing.T) {
	w.apply(t, identifiedObjects)
	kubectl(t, w.pair.A, "rollout", "status", "deployment/identified", "-n", "crossplane-system", "--timeout=50s")
	w.looks(t, "the provider may what its role says", allowed)
	_, claims, _ := strings.Cut(w.identityToken(t), ".")
	claims, _, _ = strings.Cut(claims, ".")
	text, err := base64.RawURLEncoding.DecodeString(claims)
	if err != nil {
		t.Fatal(err)
	}
	var token struct{ Iss, Sub string }
	if err := json.Unmarshal(text, &token); err != nil || token.Iss != w.insideIssuer() || token.Sub != "mcp:default/prod-1:provider:provider-kubernetes" {
		t.Errorf("the token says %+v, %v", token, err)
	}
	// Both pods of the issuer have the one key of the Secret, as a command in either tells.
	for pod := range strings.FieldsSeq(kubectl(t, w.pair.A, "get", "pods", "-n", "postern-system", "-l", "app=postern-issuer", "-o", "name")) {
		out := kubectl(t, w.pair.A, "exec", pod, "-n", "postern-system", "--", "postern", "issuer", "keys", "--keys-secret", "postern-issuer-keys", "-o", "json")
		var keys []struct{ ID string }
		if err := json.Unmarshal([]byte(out), &keys); err != nil || len(keys) != 1 {
			t.Errorf("%s has the keys %s, %v", pod, out, err)
		}
	}
	kubectl(t, w.pair.A, "delete", "deployment", "identified", "-n", "crossplane-system", "--wait")
}

//go:build linux

package quickstart_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

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

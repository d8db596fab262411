//go:build linux

package e2e_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"postern.dev/postern/dialer"
	"postern.dev/postern/dialer/kube"
	"postern.dev/postern/internal/testnet"
	"postern.dev/postern/test/kube/apiserver"
	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

// alone is a hub and an API server without a cluster: for what takes long, or breaks much.
type alone struct {
	outside
	api   *apiserver.Server
	token string // the file with the token of the agents' service account
}

// TestGateway looks at clients of an API server that has no cluster, through the hub's gateway:
// those that wait, and those that are cut off. It goes on beside TestKube.
func TestGateway(t *testing.T) {
	t.Parallel()
	w := startAlone(t)
	t.Run("silent watches", func(t *testing.T) { t.Parallel(); testSilentWatches(t, w) })
	t.Run("forms", func(t *testing.T) { t.Parallel(); testForms(t, w) })
	t.Run("limited", func(t *testing.T) { t.Parallel(); testLimited(t, w) })
	t.Run("managers", func(t *testing.T) { t.Parallel(); testManagers(t, w) })
}

func startAlone(t *testing.T) *alone {
	t.Helper()
	started := time.Now()
	dir := t.TempDir()
	w := &alone{api: apiserver.StartT(t), outside: newOutside(t, filepath.Join(dir, "postern"), freeAddr(t)), token: filepath.Join(dir, "agent.token")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n--- hub\n%s", w.api.Logs(8), w.hub.Tail(30))
		}
	})
	w.hub = w.startHub(t)
	w.makeRobot(t)
	role := blockOf(t, "docs/guide/gateway.md", "kind: ClusterRole", map[string]string{"name: postern-agent, namespace: postern": "name: agent, namespace: default"})
	w.inside(t, "", "create", "serviceaccount", "agent")
	w.inside(t, role, "apply", "-f", "-")
	w.inside(t, "", "create", "clusterrolebinding", "robot", "--clusterrole=cluster-admin", "--user="+gatewayUser)
	if err := os.WriteFile(w.token, []byte(w.inside(t, "", "create", "token", "agent", "--duration=24h")), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("API server and hub ready after %s", time.Since(started).Round(time.Second))
	return w
}

// inside runs kubectl as administrator, without any tunnel.
func (w *alone) inside(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := w.api.Kubectl(limit(t, 2*quick), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// startAgent starts an agent that is a cluster at the gateway, and reaches the hub and the API
// server at these addresses.
func (w *alone) startAgent(t *testing.T, id, hub, api string) *proc.Process {
	t.Helper()
	return w.startAgentAs(t, id, hub, api, w.token)
}

// startAgentAs is startAgent with a file that has the token of a service account.
func (w *alone) startAgentAs(t *testing.T, id, hub, api, token string) *proc.Process {
	t.Helper()
	agent := w.run(t, "agent-"+id, "agent", "--connect-url", "tls://"+hub, "--organization", "default", "--agent-id", id,
		"--token-file", w.robotToken(), "--ca-file", w.caFile(), "--name", "r1", "--gateway",
		"--kubernetes-api", "https://"+api, "--kubernetes-token-file", token, "--kubernetes-ca-file", w.api.CAFile())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- agent %s\n%s", id, agent.Tail(30))
		}
	})
	return agent
}

// link is a path to an address that the test can break.
func link(t *testing.T, c testnet.Config) *testnet.Link {
	t.Helper()
	l, err := testnet.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// kubectl is kubectl that reaches an agent's cluster by the gateway at an address.
func (w *alone) kubectl(t *testing.T, hub, agent string) client {
	t.Helper()
	return w.kubectlBy(t, hub, agent, w.robotToken())
}

// kubectlBy is kubectl for the robot whose token is in a file.
func (w *alone) kubectlBy(t *testing.T, hub, agent, file string) client {
	t.Helper()
	var robot struct{ Token string }
	if err := json.Unmarshal([]byte(readFile(t, file)), &robot); err != nil {
		t.Fatal(err)
	}
	return newClient(t, w.api.KubectlPath(), agent, pki.Kubeconfig{
		Server: "https://" + hub + "/" + agent, CA: []byte(readFile(t, w.caFile())), Token: robot.Token,
	})
}

// robotNamed makes another robot, and returns the file with its token.
func (w *alone) robotNamed(t *testing.T, organization, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "robot.json")
	w.control(t, "robot", "create", name, "-a", organization)
	w.control(t, "robot", "token", "create", name, "t1", "-f", file, "-a", organization)
	return file
}

// config is the configuration of client-go for an agent's cluster by the gateway at an address.
func (w *alone) config(t *testing.T, hub, agent string) *rest.Config {
	t.Helper()
	gateway, err := dialer.NewGateway(limit(t, quick), dialer.Options{ConnectURL: "tls://" + hub, CAFile: w.caFile(), TokenFile: w.robotToken()})
	if err != nil {
		t.Fatal(err)
	}
	config, err := kube.Gateway(gateway, agent)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // the tests are in a hurry
	return config
}

// observe calls f for each request that is answered, before the answer is read.
func observe(config *rest.Config, f func(*http.Request, *http.Response)) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			response, err := next.RoundTrip(r)
			if err == nil {
				f(r, response)
			}
			return response, err
		})
	})
}

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// waitUntilUseful waits until the API server answers through the gateway.
func (w *alone) waitUntilUseful(t *testing.T, kubectl client, agent *proc.Process) {
	t.Helper()
	w.waitFor(t, "the API server answers through the gateway", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		r := kubectl.run(ctx, nil, "get", "--raw", "/readyz", "--request-timeout=5s")
		if r.err == nil && r.stdout == "ok" {
			return nil
		}
		return &notUseful{r}
	}, w.hub, agent)
}

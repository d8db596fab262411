//go:build linux

package quickstart_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/fenced"
)

const identityGuide = "identity-tokens.md"

func (w *world) issuerURL() string { return "https://" + w.hubAddr() }

// authentication is the file with which the private cluster's API server is told whom it trusts.
func (w *world) authentication() string { return filepath.Join(w.dir, "authentication.yaml") }

// nobody is whom the private cluster's API server trusts at first.
const nobody = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: []\n"

// trust tells the private cluster's API server whom it trusts. The file is whole at any time, as the
// API server looks whenever it changes.
func (w *world) trust(t *testing.T, text string) {
	t.Helper()
	next := w.authentication() + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, w.authentication()); err != nil {
		t.Fatal(err)
	}
}

// identifiedObjects are a provider whose kubeconfig holds no secret.
const identifiedObjects = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: identified, namespace: crossplane-system}
spec:
  selector: {matchLabels: {app: identified}}
  template:
    metadata:
      labels: {app: identified, pkg.crossplane.io/provider: provider-kubernetes}
      annotations: {proidc.cloud-spaces.upbound.io/audience: private-cluster}
    spec:
      serviceAccountName: consumer
      terminationGracePeriodSeconds: 1
      containers:
      - name: identified
        image: ` + consumerImage + `
        imagePullPolicy: Never
        args: [-look, -secret, private-cluster-identity, -pace, 200ms]
        env: [{name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]
`

// identified is a provider that has shown its first token.
type identified struct {
	first looked
	token string
}

// allowed says whether the provider may what its role says, and nothing else.
func allowed(l looked) bool { return strings.HasPrefix(l.maps, "200/") && l.secrets == "403" }

// followIdentity has the guide followed, unless it was before.
func (w *world) followIdentity(t *testing.T) {
	t.Helper()
	if w.identitySet {
		return
	}
	w.identitySet = true
	for _, s := range steps(t, identityGuide) {
		w.quickStart.follow(t, s)
	}
}

// identity follows the guide: a provider reaches the private cluster with its identity token and no
// other credential, and may what its role says. Then the key of that token is withdrawn.
func (w *world) identity(t *testing.T) {
	r := w.quickStart
	w.followIdentity(t)
	ca := strings.ReplaceAll(strings.TrimSpace(readFile(t, w.caFile())), "\n", "\n      ")
	w.trust(t, identityYAML(t, "kind: AuthenticationConfiguration", "https://id.example.org", w.issuerURL(), "# …", ca))
	w.apply(t, identifiedObjects)
	kubectl(t, w.pair.A, "rollout", "status", "deployment/identified", "-n", "crossplane-system", "--timeout=50s")
	i := &identified{first: w.looks(t, "the provider may what its role says", allowed), token: w.identityToken(t)}
	if out := w.as(t, i.token); !strings.Contains(out, "kube-root-ca.crt") {
		t.Errorf("with the provider's token, from elsewhere: %s", out)
	}
	var keys []struct{ ID string }
	if err := json.Unmarshal([]byte(w.control(t, r, "postern issuer keys -o json")), &keys); err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	w.control(t, r, "postern issuer withdraw "+keys[0].ID)
	w.identified = i
}

// identityRenewed holds that the operator notices that, and the pod gets another token in place, without a
// restart. Once the API server has seen the new one, the old one is good for nothing.
func (w *world) identityRenewed(t *testing.T) {
	i := w.identified
	if i == nil {
		t.Fatal("the part before it did not work")
	}
	w.looks(t, "the provider has another token", func(l looked) bool { return l.token != i.first.token })
	began := time.Now()
	for _, is := range []struct{ what, token, want string }{
		{"the API server takes the other token", w.identityToken(t), "kube-root-ca.crt"},
		{"the API server refuses the token of the withdrawn key", i.token, "Unauthorized"},
	} {
		eventually(t, is.what, time.Minute, func(context.Context) error {
			if out := w.as(t, is.token); !strings.Contains(out, is.want) {
				return fmt.Errorf("kubectl prints %s", out)
			}
			return nil
		})
		t.Logf("%s: %s", is.what, time.Since(began).Round(100*time.Millisecond))
	}
	w.looks(t, "the provider goes on", allowed)
	out := kubectl(t, w.pair.A, "get", "pods", "-n", "crossplane-system", "-l", "app=identified", "-o",
		"jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].restartCount}{end}")
	if !regexp.MustCompile(`^identified-\S+ 0$`).MatchString(out) {
		t.Errorf("pods and restarts: %s", out)
	}
	kubectl(t, w.pair.A, "delete", "deployment", "identified", "-n", "crossplane-system", "--wait")
}

// identityToken is the token that the provider has now.
func (w *world) identityToken(t *testing.T) string {
	t.Helper()
	name := kubectl(t, w.pair.A, "get", "pods", "-n", "crossplane-system", "-l", "app=identified", "-o",
		`jsonpath={.items[0].spec.volumes[?(@.name=="postern-identity")].secret.secretName}`)
	return kubectl(t, w.pair.A, "get", "secret", name, "-n", "crossplane-system", "-o", "go-template={{.data.token | base64decode}}")
}

// as lists ConfigMaps of the private cluster as the bearer of a token, without any tunnel, and
// returns what kubectl says.
func (w *world) as(t *testing.T, token string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	if err := w.pair.B.TokenKubeconfig(w.pair.B.Direct(), "", token).WriteFile(name); err != nil {
		t.Fatal(err)
	}
	out, err := w.pair.B.Exec(limit(t, time.Minute), w.pair.B.Kubectl(), "--kubeconfig", name, "get", "configmaps", "-n", "default")
	if err != nil {
		return err.Error()
	}
	return out
}

// control runs a command of the hub's administrator.
func (w *world) control(t *testing.T, r *reader, command string) string {
	t.Helper()
	out, err := r.shell(t, "hub", command)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// looked is what the provider said of one look.
type looked struct{ token, maps, secrets string }

var lookedLine = regexp.MustCompile(`msg=looked token=(\S+) configmaps=("[^"]*"|\S+) secrets=("[^"]*"|\S+)`)

// looks waits until the provider's last look is as it is to be, and returns it.
func (w *world) looks(t *testing.T, what string, good func(looked) bool) (last looked) {
	t.Helper()
	began := time.Now()
	eventually(t, what, 2*time.Minute, func(ctx context.Context) error {
		out, err := w.pair.A.KubectlInside(ctx, "logs", "deployment/identified", "-n", "crossplane-system", "--tail=5")
		if err != nil {
			return err
		}
		all := lookedLine.FindAllStringSubmatch(out, -1)
		if len(all) == 0 {
			return fmt.Errorf("it says\n%s", out)
		}
		m := all[len(all)-1]
		if last = (looked{m[1], m[2], m[3]}); !good(last) {
			return fmt.Errorf("it says %+v", last)
		}
		return nil
	})
	t.Logf("%s: %s", what, time.Since(began).Round(100*time.Millisecond))
	return last
}

// identityYAML returns the YAML of the guide that holds a text, with what the reader has in place of
// examples.
func identityYAML(t *testing.T, marker string, pairs ...string) string {
	t.Helper()
	block, err := fenced.Find(guidePath(t, identityGuide), "yaml", marker)
	if err != nil {
		t.Fatal(err)
	}
	text, err := block.Replace(pairs...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

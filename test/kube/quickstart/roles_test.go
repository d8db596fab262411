//go:build linux

package quickstart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rolesProxy is a Proxy that somebody would like to make.
const rolesProxy = `{apiVersion: postern.dev/v1alpha1, kind: Proxy, metadata: {name: wished, namespace: default},
  spec: {secretRef: {name: robot-token, key: token}, podSelector: {matchLabels: {app: wished}}}}`

// roles holds who may do what with Proxies by the roles that every cluster has: those of the chart are
// parts of them. Administrators of a namespace make Proxies, who edits or views it sees how they are, and
// nobody else does.
func (w *world) roles(t *testing.T) {
	ctx := limit(t, 2*time.Minute)
	file := filepath.Join(w.dir, "wished.yaml")
	if err := os.WriteFile(file, []byte(rolesProxy), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		role              string
		sees, makes, ends bool
	}{{"view", true, false, false}, {"edit", true, false, false}, {"admin", true, true, true}, {"", false, false, false}} {
		user := "--as=who-may-" + one.role
		if one.role != "" {
			kubectl(t, w.pair.A, "create", "rolebinding", "proxies-"+one.role, "-n", "default", "--clusterrole="+one.role, "--user=who-may-"+one.role)
			defer kubectl(t, w.pair.A, "delete", "rolebinding", "proxies-"+one.role, "-n", "default")
		}
		for _, try := range []struct {
			may  bool
			args []string
		}{
			{one.sees, []string{"get", "proxy", "private-cluster", "-n", "default", "-o", "jsonpath={.status.phase}"}},
			{one.makes, []string{"create", "--dry-run=server", "-f", file}},
			{one.ends, []string{"delete", "proxy", "private-cluster", "-n", "default", "--dry-run=server"}},
		} {
			out, err := w.pair.A.KubectlInside(ctx, append(try.args, user)...)
			if (err == nil) != try.may || err != nil && !strings.Contains(err.Error(), "forbidden") {
				t.Errorf("the role %q may %s: %t, %v\n%s", one.role, try.args[0], !try.may, err, out)
			}
		}
	}
}

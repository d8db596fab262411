//go:build linux

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testLimited gives an agent the rights of its chart, with names of whom it may impersonate, and
// looks at what a real API server makes of that: who is not named gets nowhere, whatever the hub
// says; and whom kubectl wishes to be takes what the cluster allows the caller, all of it.
func testLimited(t *testing.T, w *alone) {
	ctx := limit(t, quick)
	install := exec.CommandContext(ctx, w.binary, "install", "agent", "--connect-url", "tls://hub.example.org", "--organization", "default", "--agent-id", "limited",
		"--token-secret", "none", "--name", "agent", "-n", "limited", "--create-namespace", "--impersonation",
		"--set", "impersonation.users={"+gatewayUser+",postern:robot:r2,bob}", "--set", "impersonation.groups={postern:robots,dev}",
		"--set", "impersonation.serviceAccounts[0].namespace=apps", "--set", "impersonation.serviceAccounts[0].name=ci")
	manifests := finish(ctx, install)
	if manifests.err != nil || manifests.code != 0 {
		t.Fatalf("postern install: %d, %v\n%s", manifests.code, manifests.err, manifests.stderr)
	}
	w.inside(t, "", "create", "namespace", "apps")
	w.inside(t, manifests.stdout, "apply", "-f", "-")
	token := filepath.Join(t.TempDir(), "token")
	account := "agent-private-network-agent"
	if err := os.WriteFile(token, []byte(w.inside(t, "", "create", "token", account, "-n", "limited", "--duration=1h")), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := w.startAgentAs(t, "limited", w.addr, w.api.Addr(), token)
	kubectl := w.kubectl(t, w.addr, "limited")
	w.waitUntilUseful(t, kubectl, agent)

	who := func(args ...string) string {
		t.Helper()
		return kubectl.must(t, append([]string{"auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.uid} {.status.userInfo.groups} {.status.userInfo.extra}"}, args...)...)
	}
	const byHub = `"postern.dev/principal":["robot:r1"]`
	if got := who(); !strings.HasPrefix(got, gatewayUser+" ") || !strings.Contains(got, byHub) {
		t.Errorf("the cluster sees %s", got)
	}
	// The robot is an administrator of the cluster; the agent may be named ones only.
	if got := who("--as", "bob", "--as-group", "dev", "--as-uid", "7"); !strings.HasPrefix(got, "bob 7 [") || !strings.Contains(got, `"dev"`) ||
		!strings.Contains(got, byHub) || strings.Contains(got, "robots") {
		t.Errorf("as bob, the cluster sees %s", got)
	}
	if got := who("--as", "system:serviceaccount:apps:ci"); !strings.HasPrefix(got, "system:serviceaccount:apps:ci ") {
		t.Errorf("as a service account, the cluster sees %s", got)
	}
	agentsName := `User "system:serviceaccount:limited:` + account + `" cannot impersonate resource `
	refused(t, kubectl, agentsName+`"users"`, "get", "--raw", "/api/v1/namespaces", "--as", "carl")
	refused(t, kubectl, agentsName+`"groups"`, "get", "--raw", "/api/v1/namespaces", "--as", "bob", "--as-group", "ops")
	refused(t, kubectl, agentsName+`"groups"`, "get", "--raw", "/api/v1/namespaces", "--as", "bob", "--as-group", "system:masters")
	refused(t, kubectl, agentsName+`"serviceaccounts"`, "get", "--raw", "/api/v1/namespaces", "--as", "system:serviceaccount:apps:other")
	refused(t, kubectl, agentsName+`"userextras/scopes"`, "get", "--raw", "/api/v1/namespaces", "--as", "bob", "--as-user-extra", "scopes=all")
	refused(t, kubectl, "is the hub's to set", "get", "namespaces", "--as", "bob", "--as-user-extra", "postern.dev/principal=user:root")

	// Who is not let in is told why by a kubectl that knows nothing of the cluster yet, too.
	w.control(t, "organization", "create", "elsewhere")
	stranger := w.kubectlBy(t, w.addr, "default:limited", w.robotNamed(t, "elsewhere", "r3"))
	refused(t, stranger, "the credential of robot:r3 is for organization elsewhere, not for default", "get", "pods")

	// A caller who may be bob gets nothing else of him, and may be nobody else.
	other := w.kubectlBy(t, w.addr, "limited", w.robotNamed(t, "default", "r2"))
	w.inside(t, "", "create", "clusterrole", "may-be-bob", "--verb=impersonate", "--resource=users", "--resource-name=bob")
	w.inside(t, "", "create", "clusterrolebinding", "may-be-bob", "--clusterrole=may-be-bob", "--user=postern:robot:r2")
	if got := other.must(t, "auth", "whoami", "--as", "bob", "-o", "jsonpath={.status.userInfo.username}"); got != "bob" {
		t.Errorf("the cluster sees %q", got)
	}
	mayNot := func(what string, args ...string) {
		t.Helper()
		refused(t, other, `User "postern:robot:r2" cannot impersonate resource "`+what+`"`, append([]string{"get", "namespaces"}, args...)...)
	}
	mayNot("users", "--as", gatewayUser)
	mayNot("groups", "--as", "bob", "--as-group", "dev")
	mayNot("groups", "--as", "bob", "--as-group", "system:masters")
	mayNot("uids", "--as", "bob", "--as-uid", "7")
	mayNot("userextras/scopes", "--as", "bob", "--as-user-extra", "scopes=all")
	mayNot("serviceaccounts", "--as", "system:serviceaccount:apps:ci")
}

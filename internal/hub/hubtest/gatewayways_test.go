package hubtest_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/config"
)

// TestGatewayTenants: a robot of one organization is nobody at the clusters of another,
// and a cluster is told apart from one of the same name elsewhere.
func TestGatewayTenants(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	if _, err := w.admin.CreateOrganization(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	theirs := w.robot("acme", "machines")
	ours, other := newKube(t), newKube(t)
	w.agent("a", ours.of("plant"))
	w.agent("b", func(a *config.Agent) {
		other.of("plant")(a)
		a.Organization, a.TokenFile = "acme", theirs
	})
	w.agent("c", func(a *config.Agent) {
		other.of("secret")(a)
		a.Organization, a.TokenFile = "acme", theirs
	})
	mine, their := tokenIn(t, w.token), tokenIn(t, theirs)
	w.serves(mine, "plant")
	w.serves(their, "plant")
	w.serves(their, "acme:secret")
	_, before := other.last()
	for path, want := range map[string]int{
		"/acme:plant/api": 403, "/acme:secret/api": 403, "/secret/api": 404, "/default:secret/api": 404, "/default:plant/api": 200, "/nowhere:plant/api": 403,
		"/plant/../acme:plant/api": 400, "/plant/..%2f..%2facme:plant/api": 400, "/plant%2f..%2facme:plant/api": 400,
	} {
		if code, body := w.call(mine, path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if _, after := other.last(); after != before {
		t.Errorf("%d requests crossed", after-before)
	}
	admin, err := os.ReadFile(w.info.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{strings.TrimSpace(string(admin)): "403 administrator's token", "": "401 no credential", mine + "x": "401 ", "junk": "401 none that this hub knows"} {
		code, text, _ := strings.Cut(want, " ")
		if got, body := w.call(token, "/plant/api"); fmt.Sprint(got) != code || !strings.Contains(body, text) || !strings.Contains(body, `"kind":"Status"`) {
			t.Errorf("want %s: %d %s", want, got, body)
		}
	}
}

// TestGatewayEnds: what runs ends with the token, and with the hub; requests share their
// connections, and go on when one replica takes over from another.
func TestGatewayEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	k := newKube(t)
	first := w.agent("a", k.of("plant"))
	token := tokenIn(t, w.robot(config.DefaultOrganization, "short"))
	w.serves(token, "plant")
	dialed := w.hub.metric(t, "postern_gateway_dials_total", "ok")
	for range 30 {
		if code, body := w.call(token, "/plant/api"); code != http.StatusOK {
			t.Fatalf("%d %s", code, body)
		}
	}
	if n := w.hub.metric(t, "postern_gateway_dials_total", "ok"); n != dialed {
		t.Errorf("%v more connections for 30 requests one after the other", n-dialed)
	}

	// One replica goes; the other is there before.
	w.agent("b", k.of("plant"))
	eventually(t, patience, func() error {
		a, err := w.admin.Agent(t.Context(), config.DefaultOrganization, "plant")
		if err == nil && len(a.Replicas) < 2 {
			err = fmt.Errorf("%d replicas", len(a.Replicas))
		}
		return err
	})
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	for i := range 10 {
		if code, body := w.call(token, "/plant/api"); code != http.StatusOK {
			t.Fatalf("request %d after a replica has gone: %d %s", i, code, body)
		}
	}

	watch, in := w.dial()
	fmt.Fprintf(watch, "GET /plant/api/v1/pods?watch=1 HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %s\r\n\r\n", token)
	exec, execIn := w.dial()
	fmt.Fprintf(exec, "POST /plant/api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n", token)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", res, err)
	}
	events := bufio.NewReader(res.Body)
	if line, err := events.ReadString('\n'); err != nil || line != "event\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if res, err := http.ReadResponse(execIn, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := io.WriteString(exec, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := execIn.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	begin := time.Now()
	if err := w.admin.DeleteRobot(t.Context(), config.DefaultOrganization, "short"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(events); err == nil {
		t.Error("the watch ended well")
	}
	if _, err := execIn.ReadByte(); err == nil {
		t.Error("the stream goes on")
	}
	if took := time.Since(begin); took > slack+time.Second {
		t.Errorf("after the token was revoked it took %s", took)
	}
	if code, _ := w.call(token, "/plant/api"); code != http.StatusUnauthorized {
		t.Errorf("the revoked token: %d", code)
	}

	// The hub stops: a watch does not hold it up.
	watch, in = w.dial()
	fmt.Fprintf(watch, "GET /plant/api/v1/pods?watch=1 HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %s\r\n\r\n", tokenIn(t, w.token))
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", res, err)
	}
	if err := w.hub.stop(); err != nil {
		t.Error(err)
	}
}

// TestGatewayForeignTokens: the tokens of a registered cluster are good at the other
// clusters of its organization, and its own where it gets them as they are.
func TestGatewayForeignTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(h *config.Hub) {
		h.GatewayTokens, h.GatewayPass = []string{"ci=default:ci"}, []string{"default:open"}
	})
	ci, plant, open := newKube(t), newKube(t), newKube(t)
	w.agent("a", ci.of("ci"))
	w.agent("b", plant.of("plant"))
	w.agent("c", open.of("open"))
	for _, cluster := range []string{"ci", "plant", "open"} {
		w.serves(tokenIn(t, w.token), cluster)
	}
	ci.tokens["sa"] = "system:serviceaccount:apps:deployer"
	open.tokens["own"] = "system:serviceaccount:kube-system:admin"
	if code, body := w.call("sa", "/plant/api"); code != http.StatusOK || body != "hello cluster:ci:system:serviceaccount:apps:deployer" {
		t.Errorf("%d %s", code, body)
	}
	if one, _ := plant.last(); !slices.Equal(one.Groups, []string{"cluster:ci:system:serviceaccounts", "system:authenticated"}) {
		t.Errorf("in the groups %v", one.Groups)
	}
	if code, body := w.call("own", "/open/api"); code != http.StatusOK || body != "hello " {
		t.Errorf("%d %s", code, body)
	}
	if one, _ := open.last(); one.Authorization != "Bearer own" {
		t.Errorf("it got %q", one.Authorization)
	}
	for token, path := range map[string]string{"own": "/plant/api", "agents-token": "/plant/api", "unknown": "/open/api"} {
		if code, body := w.call(token, path); code != http.StatusUnauthorized {
			t.Errorf("%s at %s: %d %s", token, path, code, body)
		}
	}
	// A grant is needed as for everybody, and by that name.
	if err := w.admin.RevokeAccess(t.Context(), config.DefaultOrganization, "default-workloads"); err != nil {
		t.Fatal(err)
	}
	code, body := w.call("sa", "/plant/api")
	if code != http.StatusForbidden || !strings.Contains(body, "postern access grant --to workload:cluster:ci:system:serviceaccount:apps:deployer --agent plant --target gateway") {
		t.Errorf("%d %s", code, body)
	}
}

// TestGatewayServices: a service needs a rule of the owner and a grant of the hub.
func TestGatewayServices(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	k := newKube(t)
	w.agent("a", func(a *config.Agent) {
		k.of("plant")(a)
		a.Allow = []string{"tcp:other.shop.svc:8080"}
	})
	token := tokenIn(t, w.token)
	w.serves(token, "plant")
	const path = "/plant/api/v1/namespaces/shop/services/http:web:8080/proxy-service/"
	refused := func(who string) {
		t.Helper()
		code, body := w.call(token, path)
		if code != http.StatusForbidden || !strings.Contains(body, "service shop/web is not in the exposed services allowlist: "+who) {
			t.Errorf("%d %s", code, body)
		}
	}
	refused("no rule allows") // the default grant lets robots in everywhere; the owner has not allowed it
	if err := w.admin.RevokeAccess(t.Context(), config.DefaultOrganization, "default-robots"); err != nil {
		t.Fatal(err)
	}
	refused("the hub's access grants do not let robot:machines")
	if _, err := w.admin.GrantAccess(t.Context(), config.DefaultOrganization, api.CreateAccessGrant{To: "robot:machines", Agent: "plant", Targets: []string{"gateway"}}); err != nil {
		t.Fatal(err)
	}
	refused("the hub's access grants") // the API server is not its services
}

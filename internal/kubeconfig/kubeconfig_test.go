package kubeconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"postern.dev/postern/internal/fenced"
	"postern.dev/postern/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func office() Entry {
	return Entry{
		Name:    "postern-office",
		Cluster: Cluster{Server: "https://hub.example.org:4222/office", CA: []byte("-----BEGIN CERTIFICATE-----\n")},
		User:    User{Exec: NewExec("postern", []string{"credential", "kubernetes", "--hub", "https://hub.example.org:4222", "--context", "work"})},
	}
}

func merge(t *testing.T, text string, e Entry) string {
	t.Helper()
	out, err := Merge([]byte(text), e)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	again, err := Merge(out, e)
	if err != nil || !bytes.Equal(again, out) {
		t.Errorf("a second time: %v\n%s", err, cmp.Diff(string(out), string(again)))
	}
	return string(out)
}

// added is what Merge adds for office.
const (
	addedCluster = `- cluster:
    certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==
    extensions:
    - name: postern.dev
      extension:
        provider: postern.dev
    server: https://hub.example.org:4222/office
  name: postern-office
`
	addedContext = `- context:
    cluster: postern-office
    extensions:
    - name: postern.dev
      extension:
        provider: postern.dev
    user: postern-office
  name: postern-office
`
)

const foreign = `# mine, by hand
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: QUJD # the old one
    server: https://10.0.0.1:6443
  name: prod
contexts:
- context:
    cluster: prod
    namespace: shop
    user: admin
  name: prod
current-context: prod
kind: Config
preferences: {}
users:
- name: admin
  user:
    token: "0123"
`

// TestMergeKeepsTheRest: every line of a file is still there, in its order, and what is
// added stands where kubectl would put it.
func TestMergeKeepsTheRest(t *testing.T) {
	got := merge(t, foreign, office())
	rest := got
	for line := range strings.Lines(foreign) {
		_, after, ok := strings.Cut(rest, line)
		if !ok {
			t.Fatalf("line %q is missing or out of order in:\n%s", line, got)
		}
		rest = after
	}
	for _, part := range []string{addedCluster, addedContext, "      - credential\n      - kubernetes\n"} {
		if !strings.Contains(got, part) {
			t.Errorf("not added:\n%sin:\n%s", part, got)
		}
	}
	if !strings.Contains(got, "current-context: prod\n") {
		t.Error("the current context has changed")
	}
	without, found, err := Remove([]byte(got), "postern-office")
	if err != nil || !found || string(without) != foreign {
		t.Errorf("removed: %v, %v\n%s", found, err, cmp.Diff(foreign, string(without)))
	}
	if same, found, err := Remove(without, "prod"); found || err != nil || !bytes.Equal(same, without) {
		t.Errorf("what is not ours: %v, %v", found, err)
	}
}

func TestMergeStyles(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want []string
	}{
		"nothing":       {"", []string{"kind: Config", "current-context: postern-office\n", addedCluster, addedContext}},
		"comments only": {"# to do\n", []string{"current-context: postern-office\n"}},
		"empty lists":   {"apiVersion: v1\nkind: Config\nclusters: []\nusers: null\n", []string{addedCluster, "current-context: postern-office\n"}},
		"indented":      {"kind: Config\nclusters:\n  - name: a\n    cluster: {server: 'https://a'}\n", []string{"  - name: a\n    cluster: {server: 'https://a'}\n  - cluster:\n      certificate"}},
		"JSON":          {`{"kind":"Config","clusters":[{"name":"a","cluster":{"server":"https://a"}}],"current-context":"a"}`, []string{`"name": "a"`, `"server": "https://hub.example.org:4222/office"`}},
	} {
		got := merge(t, tt.text, office())
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", name, want, got)
			}
		}
		if name == "JSON" && !json.Valid([]byte(got)) {
			t.Errorf("it is JSON no more:\n%s", got)
		}
	}
}

// TestMergeRenews: an entry of ours gets what is new, loses what is old, and keeps what
// its owner has set.
func TestMergeRenews(t *testing.T) {
	e := office()
	e.Cluster.ProxyURL, e.Cluster.TLSServerName = "http://proxy:3128", "localhost"
	text := merge(t, foreign, e)
	text = strings.Replace(text, "    cluster: postern-office\n", "    cluster: postern-office\n    namespace: shop\n", 1)
	e = office()
	e.User = User{TokenFile: "/run/token"}
	e.Use = true
	got := merge(t, text, e)
	for _, gone := range []string{"proxy-url", "tls-server-name", "exec:", "current-context: prod"} {
		if strings.Contains(got, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	for _, want := range []string{"    cluster: postern-office\n    namespace: shop\n", "tokenFile: /run/token\n", "current-context: postern-office\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	without, _, err := Remove([]byte(got), "postern-office")
	if err != nil || !strings.Contains(string(without), "current-context: \"\"\n") {
		t.Errorf("the current context stays: %v\n%s", err, without)
	}
}

// TestMergeRefuses: what somebody else has made is replaced on request only, and what
// is no kubeconfig never.
func TestMergeRefuses(t *testing.T) {
	e := office()
	e.Name = "prod"
	_, err := Merge([]byte(foreign), e)
	var f *wire.Failure
	if !errors.As(err, &f) || !strings.Contains(f.Text, `cluster "prod" that postern has not made, in line 4`) || !strings.Contains(f.Hint, "--context-name") {
		t.Errorf("foreign: %v", err)
	}
	e.Replace = true
	if got := merge(t, foreign, e); strings.Contains(got, "10.0.0.1") || strings.Contains(got, "shop") {
		t.Errorf("replaced:\n%s", got)
	}
	for name, text := range map[string]string{
		"list": "[]", "text": "hello", "two": "kind: Config\n---\nkind: Config\n", "kind": "kind: Pod\n", "map": "clusters: {a: b}\n", "bad": "a: [", "alias": "x: &a []\nclusters: *a\n",
	} {
		if out, err := Merge([]byte(text), office()); !errors.As(err, &f) || f.Code != wire.CodeBadRequest {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if _, _, err := Remove([]byte(text), "x"); err == nil && name != "alias" {
			t.Errorf("%s: removed", name)
		}
	}
}

func FuzzMerge(f *testing.F) {
	for _, s := range []string{"", foreign, "{}", "users:\n- name: postern-office\n", "a: &a [*a]", "clusters:\n- &x {name: y}\n- *x\n", "? [a]\n: b\n", "kind:\n", "%TAG ! x\n---\n{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		e := office()
		e.Replace = true
		out, err := Merge(text, e)
		if err != nil {
			return
		}
		var file struct {
			Clusters []struct {
				Name    string
				Cluster struct{ Server string }
			}
		}
		if err := yaml.Unmarshal(out, &file); err != nil {
			return // it was no kubeconfig before: kubectl refuses it too
		}
		found := false
		for _, c := range file.Clusters {
			found = found || c.Name == e.Name && c.Cluster.Server == e.Cluster.Server
		}
		if !found {
			t.Errorf("%q became\n%s", text, out)
		}
		if _, _, err := Remove(out, e.Name); err != nil {
			t.Errorf("removed: %v", err)
		}
	})
}

// TestExecCredential holds the exchange with clients against what Kubernetes documents
// of client.authentication.k8s.io, and of plugins that KEP-5339 calls.
func TestExecCredential(t *testing.T) {
	info, err := ParseExecInfo(`{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"interactive":false,"cluster":{
		"server":"https://hub.example.org/office","certificate-authority-data":"QUJD","config":{"more":"things"}}}}`)
	if err != nil || info.Server != "https://hub.example.org/office" {
		t.Fatalf("%+v, %v", info, err)
	}
	var b bytes.Buffer
	if err := info.WriteCredential(&b, "secret", time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))); err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"interactive":false},` +
		`"status":{"expirationTimestamp":"2026-01-02T02:04:05Z","token":"secret"}}` + "\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	beta, err := ParseExecInfo(`{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1beta1","spec":{}}`)
	b.Reset()
	if err != nil || beta.WriteCredential(&b, "x", time.Time{}) != nil || !strings.Contains(b.String(), "/v1beta1") || strings.Contains(b.String(), "expiration") {
		t.Errorf("v1beta1: %v, %s", err, b.String())
	}
	if byHand, err := ParseExecInfo(""); err != nil || byHand.Server != "" {
		t.Errorf("by hand: %+v, %v", byHand, err)
	}
	for _, bad := range []string{"{", "null", "[]", `{"kind":"Pod","apiVersion":"client.authentication.k8s.io/v1"}`,
		`{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1alpha1"}`, strings.Repeat(" ", maxExecInfo+1)} {
		if _, err := ParseExecInfo(bad); err == nil {
			t.Errorf("%.60q is taken", bad)
		}
	}
}

// TestAccessProvider: the file in the guide that makes controllers find clusters by their
// ClusterProfile has the plugin as a kubeconfig would have it, and no field that client-go's
// ExecConfig has not.
func TestAccessProvider(t *testing.T) {
	guide, err := fenced.Find("../../docs/guide/many-clusters.md", "json", "execConfig")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Providers []struct {
			Name       string `json:"name"`
			ExecConfig Exec   `json:"execConfig"`
		} `json:"providers"`
	}
	dec := json.NewDecoder(strings.NewReader(guide.Text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil || len(file.Providers) != 1 {
		t.Fatalf("%v\n%s", err, guide.Text)
	}
	want := NewExec("postern", []string{"credential", "kubernetes", "--hub", "https://hub.example.org:4222", "--token-file", "/etc/postern/token.json"})
	want.InstallHint = ""
	if diff := cmp.Diff(*want, file.Providers[0].ExecConfig); diff != "" {
		t.Error(diff)
	}
	// The names of the fields are those of k8s.io/client-go/tools/clientcmd/api.ExecConfig.
	b, err := json.Marshal(NewExec("postern", nil))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(fields))
	if diff := cmp.Diff([]string{"apiVersion", "args", "command", "env", "installHint", "interactiveMode", "provideClusterInfo"}, names); diff != "" {
		t.Error(diff)
	}
}

func FuzzExecInfo(f *testing.F) {
	f.Add(`{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"cluster":{"server":"https://x"}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		info, err := ParseExecInfo(text)
		if err == nil && info.version != apiV1 && info.version != apiV1Beta1 {
			t.Errorf("version %q", info.version)
		}
	})
}

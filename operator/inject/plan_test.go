package inject

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"postern.dev/postern/operator/selection"
)

func testRoute() *Route {
	key := selection.Key{Group: "postern.dev", Namespace: "default", Name: "office"}
	return &Route{
		Proxy: key, Agent: "agent-1", Host: "office-proxy.default.svc:3128", Secret: selection.SecretName(key),
		APIServer: "10.96.0.1",
	}
}

func env(pairs ...string) (list []corev1.EnvVar) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, corev1.EnvVar{Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

func onePod(vars ...corev1.EnvVar) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "apps", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "web", Env: vars}}},
	}
}

// applied returns the pod as the API server would have it after a plan.
func applied(t interface {
	Helper()
	Fatal(args ...any)
}, pod *corev1.Pod, plan *Plan,
) *corev1.Pod {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Operations) > 0 {
		if raw, err = Apply(raw, plan.Operations); err != nil {
			t.Fatal(err)
		}
	}
	changed := &corev1.Pod{}
	if err := json.Unmarshal(raw, changed); err != nil {
		t.Fatal(err)
	}
	return changed
}

// names lists the variables of a container with their values.
func names(c corev1.Container) (list []string) {
	for _, v := range c.Env {
		list = append(list, v.Name+"="+v.Value)
	}
	return list
}

const (
	wantURL     = "http://agent-1:$(POSTERN_PROXY_PASSWORD)@office-proxy.default.svc:3128"
	wantNoProxy = "10.96.0.1,localhost,127.0.0.1,::1,169.254.169.254,fd00:ec2::254,metadata.google.internal,169.254.170.2,169.254.170.23,fd00:ec2::23"
)

func injected(which ...string) []string {
	list := []string{"POSTERN_PROXY_PASSWORD="}
	for _, name := range which {
		if strings.EqualFold(name, "NO_PROXY") {
			list = append(list, name+"="+wantNoProxy)
		} else {
			list = append(list, name+"="+wantURL)
		}
	}
	return list
}

var allVariables = []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"}

func TestVariablesOfAContainer(t *testing.T) {
	valueFrom := corev1.EnvVar{Name: "https_proxy", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}}}
	for _, test := range []struct {
		name string
		vars []corev1.EnvVar
		from []string // defined by a ConfigMap
		want []string
		warn string
	}{
		{name: "none of its own", want: injected(allVariables...)},
		{
			name: "others, which come first and keep their references",
			vars: env("FOO", "$(HTTP_PROXY)", "BAR", "$$(NO_PROXY)"),
			want: append([]string{"FOO=$(HTTP_PROXY)", "BAR=$$(NO_PROXY)"}, injected(allVariables...)...),
		},
		{
			name: "one spelling is both", vars: env("https_proxy", "http://own:1"), warn: "sets HTTPS_PROXY itself",
			want: append([]string{"https_proxy=http://own:1"}, injected("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")...),
		},
		{
			name: "set to nothing is set", vars: env("HTTP_PROXY", ""), warn: "sets HTTP_PROXY itself",
			want: append([]string{"HTTP_PROXY="}, injected("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")...),
		},
		{
			name: "taken from a field", vars: []corev1.EnvVar{valueFrom}, warn: "sets HTTPS_PROXY itself",
			want: append([]string{"https_proxy="}, injected("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")...),
		},
		{
			name: "taken from a ConfigMap", from: []string{"HTTPS_PROXY"}, warn: "sets HTTPS_PROXY itself",
			want: injected("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"),
		},
		{
			name: "both proxies, so that NO_PROXY is theirs too", vars: env("HTTP_PROXY", "http://own:1", "HTTPS_PROXY", "http://own:1"),
			want: []string{"HTTP_PROXY=http://own:1", "HTTPS_PROXY=http://own:1"}, warn: "left as it is",
		},
		{
			name: "its own NO_PROXY", vars: env("no_proxy", ".svc"), warn: "it must name 10.96.0.1",
			want: append([]string{"no_proxy=.svc"}, injected("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")...),
		},
		{name: "a proxy for all", vars: env("all_proxy", "socks5://own:1"), want: []string{"all_proxy=socks5://own:1"}, warn: "ALL_PROXY"},
		{name: "a password of its own", vars: env(passwordVariable, "x"), want: []string{passwordVariable + "=x"}, warn: "was not pointed to the proxy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := onePod(test.vars...)
			var from EnvFrom
			if test.from != nil {
				pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{}}
				from = func(*corev1.Container, []string) ([]string, error) { return test.from, nil }
			}
			plan := NewPlan(pod, testRoute(), from)
			if diff := cmp.Diff(test.want, names(applied(t, pod, plan).Spec.Containers[0])); diff != "" {
				t.Errorf("variables (-want +got):\n%s", diff)
			}
			if warned := strings.Join(plan.Warnings, "\n"); !strings.Contains(warned, test.warn) || test.warn == "" && warned != "" {
				t.Errorf("warnings %q, want one with %q", warned, test.warn)
			}
		})
	}
}

func TestEveryContainerIsInjectedAndNothingElse(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := onePod()
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "second"})
	pod.Spec.InitContainers = []corev1.Container{{Name: "init"}, {Name: "sidecar", RestartPolicy: &always, Env: env("A", "b")}}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}

	got := applied(t, pod, NewPlan(pod, testRoute(), nil))

	for _, c := range slices.Concat(got.Spec.Containers, got.Spec.InitContainers) {
		if n := len(c.Env); n != 7 && c.Name != "sidecar" || n != 8 && c.Name == "sidecar" {
			t.Errorf("container %s has %v", c.Name, names(c))
		}
		password := c.Env[slices.IndexFunc(c.Env, isPassword)]
		if ref := password.ValueFrom.SecretKeyRef; ref.Name != "postern-proxy-default.office" || ref.Key != "password" || ref.Optional != nil {
			t.Errorf("container %s takes its password from %v", c.Name, ref)
		}
	}
	if vars := got.Spec.EphemeralContainers[0].Env; vars != nil {
		t.Errorf("the ephemeral container got %v", vars)
	}
	want := map[string]string{"proxy.postern.dev/injected": "default/office", "proxy.postern.dev/agent": "agent-1"}
	if !maps.Equal(got.Annotations, want) {
		t.Errorf("annotations %v, want %v", got.Annotations, want)
	}
}

func TestUnknownFieldsStay(t *testing.T) {
	raw := `{"metadata":{"name":"p","annotations":null,"novel":1},"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"b","novel":{"x":[1]}}],"novel":"y"}],"novel":true}}`
	pod := &corev1.Pod{}
	if err := json.Unmarshal([]byte(raw), pod); err != nil {
		t.Fatal(err)
	}
	changed, err := Apply([]byte(raw), NewPlan(pod, testRoute(), nil).Operations)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(changed), "novel"); n != 4 {
		t.Errorf("of 4 unknown fields %d are left: %s", n, changed)
	}
	if !strings.Contains(string(changed), "HTTPS_PROXY") {
		t.Errorf("nothing was injected: %s", changed)
	}
}

func TestACopyOfAnInjectedPod(t *testing.T) {
	earlier := testRoute()
	earlier.Agent, earlier.APIServer = "agent-0", "10.0.0.1"
	pod := onePod(env("A", "b", "C", "d")...)
	copied := applied(t, pod, NewPlan(pod, earlier, nil))
	copied.Spec.Containers[0].Env = append(copied.Spec.Containers[0].Env, env("LATE", "$(HTTP_PROXY)")...)

	t.Run("for another agent", func(t *testing.T) {
		got := applied(t, copied, NewPlan(copied, testRoute(), nil))
		want := slices.Concat([]string{"A=b", "C=d", "LATE=$(HTTP_PROXY)"}, injected(allVariables...))
		if diff := cmp.Diff(want, names(got.Spec.Containers[0])); diff != "" {
			t.Errorf("variables (-want +got):\n%s", diff)
		}
		if got.Annotations[selection.AnnotationAgent] != "agent-1" {
			t.Errorf("annotations %v", got.Annotations)
		}
	})
	t.Run("that nobody selects", func(t *testing.T) {
		got := applied(t, copied, NewPlan(copied, nil, nil))
		if diff := cmp.Diff([]string{"A=b", "C=d", "LATE=$(HTTP_PROXY)"}, names(got.Spec.Containers[0])); diff != "" {
			t.Errorf("variables (-want +got):\n%s", diff)
		}
		if len(got.Annotations) != 0 {
			t.Errorf("annotations %v are left", got.Annotations)
		}
	})
}

func TestTheAPIServersOfThePodAndTheOperator(t *testing.T) {
	for _, test := range []struct{ pod, operator, want string }{
		{"", "10.96.0.1", "10.96.0.1,localhost,"},
		{"api.example.org", "10.96.0.1", "api.example.org,10.96.0.1,localhost,"},
		{"10.96.0.1", "10.96.0.1", "10.96.0.1,localhost,"},
		{"", "fd00:10:96::1", "fd00:10:96::1,localhost,"},
		// These names are those of the far API server too.
		{"kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost,"},
		{"1.2.3.4,*", "", "localhost,"},
	} {
		route := testRoute()
		route.APIServer = test.operator
		var vars []corev1.EnvVar
		if test.pod != "" {
			vars = env("KUBERNETES_SERVICE_HOST", test.pod)
		}
		pod := onePod(vars...)
		got := literal(applied(t, pod, NewPlan(pod, route, nil)).Spec.Containers[0].Env, "NO_PROXY")
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("pod %q, operator %q: NO_PROXY is %s, want it to begin with %s", test.pod, test.operator, got, test.want)
		}
	}
}

func TestMoreEntriesOfNoProxy(t *testing.T) {
	route := testRoute()
	route.NoProxy = []string{"10.96.0.0/12"}
	pod := onePod()
	pod.Annotations = map[string]string{AnnotationNoProxy: "db.example.org, .svc,, $(SECRET),10.0.0.0/99"}
	plan := NewPlan(pod, route, nil)
	got := literal(applied(t, pod, plan).Spec.Containers[0].Env, "no_proxy")
	if want := wantNoProxy + ",10.96.0.0/12,db.example.org,.svc"; got != want {
		t.Errorf("no_proxy is\n%s, want\n%s", got, want)
	}
	if len(plan.Warnings) != 2 {
		t.Errorf("warnings %q, want two: one for each bad entry", plan.Warnings)
	}
}

func TestEntriesForAllPods(t *testing.T) {
	for _, good := range []string{"10.96.0.0/12", "fd00::/8", "registry.example.org", ".example.org", "*.example.org", "example.org:8443", "[::1]"} {
		if err := CheckNoProxy(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "*", ".", ".svc", "svc", ".cluster.local", "*.cluster.local", "local", "kubernetes.default", "Kubernetes.Default.Svc", "a b", "a,b", "$(X)", "10.0.0.0/99", strings.Repeat("a", 300)} {
		if CheckNoProxy(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestVariablesThatCannotBeLookedAt(t *testing.T) {
	pod := onePod()
	pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{}}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "second"})
	plan := NewPlan(pod, testRoute(), func(*corev1.Container, []string) ([]string, error) { return nil, errors.New("forbidden") })
	got := applied(t, pod, plan)
	if vars := got.Spec.Containers[0].Env; len(vars) != 0 {
		t.Errorf("the container whose variables are not known got %v", vars)
	}
	if len(got.Spec.Containers[1].Env) != 7 || len(plan.Warnings) != 1 {
		t.Errorf("the other container has %v, warnings %q", names(got.Spec.Containers[1]), plan.Warnings)
	}
}

func TestAPodInTheNodesNetwork(t *testing.T) {
	pod := onePod()
	pod.Spec.HostNetwork, pod.Spec.DNSPolicy = true, corev1.DNSClusterFirst
	if w := NewPlan(pod, testRoute(), nil).Warnings; len(w) != 1 || !strings.Contains(w[0], "ClusterFirstWithHostNet") {
		t.Errorf("warnings %q", w)
	}
	pod.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	if w := NewPlan(pod, testRoute(), nil).Warnings; len(w) != 0 {
		t.Errorf("warnings %q", w)
	}
}

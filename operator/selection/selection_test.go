package selection

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"
)

func proxy(name string, age int, selector string) Proxy {
	parsed, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	return Proxy{
		Key:     Key{Group: "postern.dev", Namespace: "default", Name: name},
		Created: time.Unix(1000-int64(age), 0), Agent: "agent-" + name, Selector: parsed,
	}
}

func pod(labelText string, annotations ...string) *corev1.Pod {
	p := &corev1.Pod{}
	p.Labels, _ = labels.ConvertSelectorToLabelsMap(labelText)
	for i := 0; i < len(annotations); i += 2 {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[annotations[i]] = annotations[i+1]
	}
	return p
}

func TestSelecting(t *testing.T) {
	older, younger := proxy("older", 10, "app=web"), proxy("younger", 5, "app in (web,db)")
	twin := older
	twin.Group = "spaces.upbound.io"
	deleting := proxy("deleting", 20, "app=web")
	deleting.Deleting = true
	everything := proxy("everything", 30, "")
	all := []Proxy{younger, everything, deleting, twin, older}
	rules := Rules{Excluded: []string{"kube-system"}}
	for _, test := range []struct {
		name, namespace string
		rules           Rules
		pod             *corev1.Pod
		want            []string
	}{
		{"the older wins", "apps", rules, pod("app=web"), []string{"older", "older", "younger"}},
		{"one selects it", "apps", rules, pod("app=db"), []string{"younger"}},
		{"nobody selects it", "apps", rules, pod("app=other"), nil},
		{"excluded namespace", "kube-system", rules, pod("app=web"), nil},
		{"not among the only ones", "apps", Rules{Only: []string{"crossplane-system"}}, pod("app=web"), nil},
		{"opted out", "apps", rules, pod("app=web", AnnotationInject, "false"), nil},
		{"opted out, loudly", "apps", rules, pod("app=web", AnnotationInject, " FALSE "), nil},
		{"opted in, which means nothing", "apps", rules, pod("app=web", AnnotationInject, "true"), []string{"older", "older", "younger"}},
		{"a proxy's own pod", "apps", rules, pod("app=web," + LabelProxy + "=default.older"), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, p := range test.rules.Selecting(test.namespace, test.pod, all) {
				got = append(got, p.Name)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("selecting: %v, want %v", got, test.want)
			}
		})
	}
}

func TestTheOrderOfTheListDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "proxies")
		var all []Proxy
		for i := range n {
			all = append(all, proxy(string(rune('a'+i)), rapid.IntRange(0, 2).Draw(t, "age"), "app=web"))
		}
		want := Rules{}.Selecting("apps", pod("app=web"), all)
		mixed := rapid.Permutation(all).Draw(t, "mixed")
		got := Rules{}.Selecting("apps", pod("app=web"), mixed)
		for i := range want {
			if got[i].Key != want[i].Key {
				t.Fatalf("place %d: %s, and in another order %s", i, want[i].Key, got[i].Key)
			}
		}
	})
}

func TestSecretNames(t *testing.T) {
	a := SecretName(Key{Namespace: "a-b", Name: "c"})
	b := SecretName(Key{Namespace: "a", Name: "b-c"})
	if a == b {
		t.Errorf("two Proxies have one Secret: %s", a)
	}
	rapid.Check(t, func(t *rapid.T) {
		k := Key{
			Namespace: rapid.StringMatching(`[a-z]([a-z0-9-]{0,61}[a-z0-9])?`).Draw(t, "namespace"),
			Name:      rapid.StringMatching(`[a-z]([a-z0-9.-]{0,251}[a-z0-9])?`).Draw(t, "name"),
		}
		if strings.Contains(k.Name, "..") || strings.Contains(k.Name, ".-") || strings.Contains(k.Name, "-.") {
			t.Skip("not a name that Kubernetes takes")
		}
		if problems := validation.IsDNS1123Subdomain(SecretName(k)); len(problems) > 0 {
			t.Fatalf("%s: %v", SecretName(k), problems)
		}
	})
}

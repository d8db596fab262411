package charts_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// document is as much of an object as says what it may do.
type document struct {
	Kind     string
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Rules []rbacv1.PolicyRule
	Spec  struct {
		Template struct {
			Spec struct{ AutomountServiceAccountToken *bool }
		}
	}
}

// golden returns the objects of a golden file.
func golden(t *testing.T, name string) []document {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, "testdata", name+".golden.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var all []document
	for _, part := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
		var d document
		if err := yaml.Unmarshal([]byte(part), &d); err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

// TestRights holds what the charts give to what is written about it.
func TestRights(t *testing.T) {
	for _, name := range []string{"private-network-agent/quickstart", "private-network-agent/join", "private-network-agent/key", "postern-hub/default"} {
		for _, d := range golden(t, name) {
			if strings.Contains(d.Kind, "Role") {
				t.Errorf("%s makes the %s %s, and needs no right", name, d.Kind, d.Metadata.Name)
			}
			if d.Kind == "Deployment" || d.Kind == "StatefulSet" {
				if mounted := d.Spec.Template.Spec.AutomountServiceAccountToken; mounted == nil || *mounted {
					t.Errorf("%s: its pods get a token of the cluster", name)
				}
			}
		}
	}
	for _, d := range golden(t, "postern-hub/keys") {
		for _, rule := range d.Rules {
			if slices.Contains(rule.Resources, "secrets") && !slices.Equal(rule.Verbs, []string{"create"}) &&
				(d.Kind != "Role" || !slices.Equal(rule.ResourceNames, []string{"issuer-keys"}) || !slices.Equal(rule.Verbs, []string{"get", "patch"})) {
				t.Errorf("the hub may %v Secrets %v by a %s", rule.Verbs, rule.ResourceNames, d.Kind)
			}
		}
	}
	for _, d := range golden(t, "private-network-agent/gateway") {
		for _, rule := range d.Rules {
			narrow := slices.Equal(rule.Verbs, []string{"impersonate"}) || slices.Equal(rule.Verbs, []string{"create"}) ||
				slices.Equal(rule.Resources, []string{"services"}) && slices.Equal(rule.Verbs, []string{"get"})
			if !narrow {
				t.Errorf("%s may %v %v", d.Metadata.Name, rule.Verbs, rule.Resources)
			}
			for _, named := range []string{"users", "groups", "serviceaccounts", "userextras/postern.dev/principal"} {
				if slices.Contains(rule.Resources, named) && len(rule.ResourceNames) == 0 {
					t.Errorf("%s may impersonate any of %s, and the values list some", d.Metadata.Name, named)
				}
			}
		}
	}
	for _, d := range golden(t, "postern-operator/documents") {
		for _, rule := range d.Rules {
			for _, list := range [][]string{rule.APIGroups, rule.Resources, rule.Verbs} {
				if slices.Contains(list, "*") {
					t.Errorf("%s has a rule of everything: %+v", d.Metadata.Name, rule)
				}
			}
			changes := slices.Contains(rule.Verbs, "create") && slices.Contains(rule.Resources, "proxies")
			if _, admin := d.Metadata.Labels["rbac.authorization.k8s.io/aggregate-to-admin"]; changes && !admin {
				t.Errorf("%s may make Proxies, and is not for administrators", d.Metadata.Name)
			}
			for _, label := range []string{"rbac.authorization.k8s.io/aggregate-to-view", "rbac.authorization.k8s.io/aggregate-to-edit"} {
				if _, ok := d.Metadata.Labels[label]; ok && !slices.Equal(rule.Verbs, []string{"get", "list", "watch"}) {
					t.Errorf("%s may %v and is part of %s", d.Metadata.Name, rule.Verbs, label)
				}
			}
		}
	}
}

// TestOperatorsRights holds the operator's role to what its packages say that they need, by markers as
// those of controller-gen.
func TestOperatorsRights(t *testing.T) {
	granted := make(map[string]bool) // GROUP/RESOURCE VERB
	for _, d := range golden(t, "postern-operator/documents") {
		for _, rule := range d.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						granted[group+"/"+resource+" "+verb] = true
					}
				}
			}
		}
	}
	marker := regexp.MustCompile(`\+kubebuilder:rbac:groups=(\S+),resources=(\S+),verbs=(\S+)`)
	err := filepath.WalkDir("../../../operator", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".go" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, m := range marker.FindAllStringSubmatch(string(text), -1) {
			for group := range strings.SplitSeq(strings.Trim(m[1], `"`), ";") {
				for resource := range strings.SplitSeq(m[2], ";") {
					for verb := range strings.SplitSeq(m[3], ";") {
						if need := group + "/" + resource + " " + verb; !granted[need] {
							t.Errorf("%s needs %s, and the chart does not grant it", name, need)
						}
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestHelmRefuses gives Helm what cannot be meant. Our own renderer has many more such cases, with the same
// schema and templates.
func TestHelmRefuses(t *testing.T) {
	run := helm(t)
	for chart, tests := range map[string]map[string]string{
		"private-network-agent": {
			"agent.conectUrl=tls://hub":                                       "additional properties 'conectUrl' not allowed",
			"agent.connectUrl=tls://hub,agent.organization=o,agent.agentId=a": "kubectl create secret generic",
		},
		"postern-hub":      {"replicas=2": "hubs do not form clusters yet"},
		"postern-operator": {"webhook.failurePolicy=Maybe": "value must be one of 'Ignore', 'Fail'"},
	} {
		for set, want := range tests {
			_, stderr, err := run("template", release, filepath.Join(folder, chart), "--set", set)
			if err == nil || !strings.Contains(stderr, want) {
				t.Errorf("%s with %s: %v, want %q, got\n%s", chart, set, err, want, stderr)
			}
		}
	}
}

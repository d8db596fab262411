package install

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// kinds are in the order in which they are applied; others come last, by their names.
func kinds() []string {
	return []string{
		"PriorityClass", "Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange", "PodSecurityPolicy", "PodDisruptionBudget",
		"ServiceAccount", "Secret", "SecretList", "ConfigMap", "StorageClass", "PersistentVolume", "PersistentVolumeClaim",
		"CustomResourceDefinition", "ClusterRole", "ClusterRoleList", "ClusterRoleBinding", "ClusterRoleBindingList",
		"Role", "RoleList", "RoleBinding", "RoleBindingList", "Service", "DaemonSet", "Pod", "ReplicationController",
		"ReplicaSet", "Deployment", "HorizontalPodAutoscaler", "StatefulSet", "Job", "CronJob", "IngressClass", "Ingress",
		"APIService", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
	}
}

// document is one YAML document of a rendered file.
type document struct {
	file, text string
	kind       string
	hook       bool
}

// arrange puts the documents of rendered files in order: what is applied by kind, then, if they are
// wanted, the hooks.
func arrange(files map[string]string, hooks bool) (string, error) {
	var all []document
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for _, text := range split(files[name]) {
			d, err := readDocument(name, text)
			if err != nil {
				return "", err
			}
			all = append(all, d)
		}
	}
	rank := make(map[string]int)
	for i, kind := range kinds() {
		rank[kind] = i - len(kinds()) // unknown kinds are 0
	}
	slices.SortStableFunc(all, func(a, b document) int {
		if c := cmp.Compare(rank[a.kind], rank[b.kind]); c != 0 || rank[a.kind] != 0 {
			return c
		}
		return cmp.Compare(a.kind, b.kind)
	})
	var applied, further strings.Builder
	for _, d := range all {
		b := &applied
		if d.hook {
			b = &further
		}
		fmt.Fprintf(b, "---\n# Source: %s\n%s\n", d.file, d.text)
	}
	out := strings.TrimSpace(applied.String()) + "\n"
	if hooks {
		out += further.String()
	}
	return out, nil
}

// split returns the documents of a file that are not empty.
func split(text string) []string {
	separator := regexp.MustCompile(`(?m)^---[ \t]*`)
	var documents []string
	for _, d := range separator.Split(strings.TrimLeftFunc(text, unicode.IsSpace), -1) {
		if d = strings.TrimLeftFunc(d, unicode.IsSpace); d != "" {
			documents = append(documents, d)
		}
	}
	return documents
}

func readDocument(file, text string) (document, error) {
	d := document{file: file, text: text}
	var head struct {
		Kind     string `yaml:"kind"`
		Metadata struct {
			Annotations map[string]string `yaml:"annotations"`
		} `yaml:"metadata"`
	}
	if err := unmarshalInto([]byte(text), &head); err != nil {
		return d, fmt.Errorf("%s is not YAML once it is rendered: %w", file, err)
	}
	d.kind = head.Kind
	_, d.hook = head.Metadata.Annotations["helm.sh/hook"]
	return d, nil
}

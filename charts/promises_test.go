package charts_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"postern.dev/postern/charts"
)

// promised are the values that every chart has, by their paths.
var promised = []string{ //nolint:gochecknoglobals // a constant
	"replicas", "image.repository", "image.tag", "image.digest", "image.pullPolicy", "imagePullSecrets", "nameOverride", "fullnameOverride",
	"serviceAccount.create", "serviceAccount.name", "serviceAccount.annotations", "podAnnotations", "podLabels", "podSecurityContext", "securityContext",
	"resources", "priorityClassName", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "terminationGracePeriodSeconds",
	"extraEnv", "extraArgs", "extraVolumes", "extraVolumeMounts", "podDisruptionBudget.enabled", "podDisruptionBudget.maxUnavailable",
	"networkPolicy.enabled", "networkPolicy.egress", "networkPolicy.metricsFrom", "metrics.port", "metrics.serviceMonitor.enabled",
	"metrics.serviceMonitor.labels", "metrics.serviceMonitor.interval", "metrics.prometheusRule.enabled", "metrics.prometheusRule.labels", "test",
}

// TestPromisedValues holds that every chart has the same values for what pods of all kinds need, and
// that its schema knows neither more nor less than its values.
func TestPromisedValues(t *testing.T) {
	for _, name := range charts.Names() {
		var values map[string]any
		read(t, name+"/values.yaml", func(b []byte) error { return yaml.Unmarshal(b, &values) })
		for _, path := range promised {
			if _, ok := at(values, path); !ok {
				t.Errorf("chart %s has no value %s", name, path)
			}
		}
		var schema struct{ Definitions, Properties map[string]any }
		read(t, name+"/values.schema.json", func(b []byte) error { return json.Unmarshal(b, &schema) })
		delete(schema.Properties, "global") // Helm's
		for _, problem := range compare("", values, schema.Properties, schema.Definitions) {
			t.Errorf("chart %s: %s", name, problem)
		}
	}
}

func read(t *testing.T, name string, decode func([]byte) error) {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(name))
	if err == nil {
		err = decode(text)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func at(values map[string]any, path string) (any, bool) {
	first, rest, deeper := strings.Cut(path, ".")
	v, ok := values[first]
	if below, isMap := v.(map[string]any); deeper && isMap {
		return at(below, rest)
	}
	return v, ok && !deeper
}

// compare returns where values and the properties of a schema differ.
func compare(path string, values, properties, definitions map[string]any) (problems []string) {
	for name := range properties {
		if _, ok := values[name]; !ok {
			problems = append(problems, "the schema has "+path+name+", and values.yaml does not say what it is")
		}
	}
	for name, value := range values {
		property, ok := properties[name].(map[string]any)
		if !ok {
			problems = append(problems, "the schema does not know "+path+name)
			continue
		}
		if ref, ok := property["$ref"].(string); ok {
			property, _ = definitions[strings.TrimPrefix(ref, "#/definitions/")].(map[string]any)
		}
		below, ok := value.(map[string]any)
		if inner, has := property["properties"].(map[string]any); ok && has && len(below) > 0 { // an empty one has its keys in its comment
			problems = append(problems, compare(path+name+".", below, inner, definitions)...)
		}
	}
	return problems
}

// object is as much of a manifest as these tests look at.
type object struct {
	Kind     string
	Metadata struct{ Annotations map[string]string }
	Spec     struct {
		Template struct {
			Spec struct {
				TopologySpreadConstraints []any `yaml:"topologySpreadConstraints"`
				Containers                []struct {
					Startup   map[string]any `yaml:"startupProbe"`
					Liveness  map[string]any `yaml:"livenessProbe"`
					Readiness map[string]any `yaml:"readinessProbe"`
				}
			}
		}
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
}

func objects(t *testing.T, file string) (all []object) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for d := yaml.NewDecoder(f); ; {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, o)
	}
}

// TestSafeDefaults holds what each chart makes without being told: a budget, a NetworkPolicy, probes, and
// pods that are spread. With a Secret for it, a test of Helm's.
func TestSafeDefaults(t *testing.T) {
	for _, chart := range []string{"private-network-agent/quickstart", "postern-hub/default", "postern-operator/documents"} {
		kinds := map[string]int{}
		for _, o := range objects(t, "testdata/"+chart+".golden.yaml") {
			kinds[o.Kind]++
			if o.Metadata.Annotations["helm.sh/hook"] == "test" {
				kinds["test"]++
			}
			if o.Kind != "Deployment" && o.Kind != "StatefulSet" || o.Metadata.Annotations["helm.sh/hook"] != "" {
				continue
			}
			pod := o.Spec.Template.Spec
			if len(pod.TopologySpreadConstraints) != 2 {
				t.Errorf("%s: its pods are not spread", chart)
			}
			for _, c := range pod.Containers {
				if c.Startup == nil || c.Liveness == nil || c.Readiness == nil {
					t.Errorf("%s: a probe is missing", chart)
				}
			}
		}
		for _, kind := range []string{"PodDisruptionBudget", "NetworkPolicy", "ServiceAccount", "test"} {
			if kinds[kind] != 1 {
				t.Errorf("%s: %d of %s", chart, kinds[kind], kind)
			}
		}
		if kinds["ServiceMonitor"]+kinds["PrometheusRule"] > 0 {
			t.Errorf("%s: needs the Prometheus operator, and nobody asked for it", chart)
		}
	}
}

// TestAlerts holds the alerts of all charts to metrics that there are, and their labels.
func TestAlerts(t *testing.T) {
	known := map[string]string{"up": "", "controller_runtime_reconcile_errors_total": "controller"} // Prometheus' and the library's
	row := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|(?: [a-z]+ \\|)? ([^|]*)\\|")
	for _, file := range []string{"../docs/reference/metrics.md", "../docs/guide/metrics.md"} {
		read(t, file, func(b []byte) error {
			for _, m := range row.FindAllStringSubmatch(string(b), -1) {
				known[m[1]] += m[2]
			}
			return nil
		})
	}
	metric := regexp.MustCompile(`([a-z][a-z_]+)\{([^}]*)\}`)
	label := regexp.MustCompile(`([a-z_]+)=`)
	files, err := filepath.Glob("testdata/*/*.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		for _, o := range objects(t, file) {
			for _, group := range o.Spec.Groups {
				for _, rule := range group.Rules {
					seen[strings.Split(file, "/")[1]] = true
					found := metric.FindAllStringSubmatch(rule.Expr, -1)
					if len(found) == 0 || rule.Annotations["summary"] == "" {
						t.Errorf("%s: %s names no metric, or says nothing", file, rule.Alert)
					}
					for _, m := range found {
						labels, ok := known[m[1]]
						if !ok {
							t.Errorf("%s: %s is about %s, which there is not", file, rule.Alert, m[1])
						}
						for _, l := range label.FindAllStringSubmatch(m[2], -1) {
							if l[1] != "job" && !strings.Contains(labels, "`"+l[1]+"`") {
								t.Errorf("%s: %s is about the label %s of %s, which there is not", file, rule.Alert, l[1], m[1])
							}
						}
					}
				}
			}
		}
	}
	if len(seen) != len(charts.Names()) {
		t.Errorf("only %v have alerts in their golden files", seen)
	}
}

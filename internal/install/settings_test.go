package install_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"postern.dev/postern/internal/config"
)

// TestVariablesAreSettings holds the variables that charts set to the settings that programs have: a
// variable that nobody reads is a value that does nothing.
func TestVariablesAreSettings(t *testing.T) {
	agent, hub, operator, doctor := config.DefaultAgent(), config.DefaultHub(), config.DefaultOperator(), config.DefaultDoctor()
	known := map[string][]string{
		"private-network-agent": append(variables(config.Bind(&agent)), variables(config.Bind(&doctor))...),
		"postern-hub":           append(variables(config.Bind(&hub)), variables(config.Bind(&doctor))...),
		"postern-operator":      append(variables(config.Bind(&operator)), variables(config.Bind(&doctor))...),
	}
	others := []string{"POSTERN_HUB", "POSTERN_CONFIG"} // of the administrator's commands, and of all
	set := regexp.MustCompile(`name: (POSTERN_[A-Z0-9_]+)`)
	for name, cases := range goldenCases(t) {
		for _, file := range cases {
			text, err := os.ReadFile(strings.TrimSuffix(file, ".values.yaml") + ".golden.yaml")
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range set.FindAllStringSubmatch(string(text), -1) {
				if !slices.Contains(known[name], match[1]) && !slices.Contains(others, match[1]) {
					t.Errorf("%s sets %s, and nothing reads it", file, match[1])
				}
			}
		}
	}
}

// TestOrganizationsFile has the settings read the file that the chart makes for an agent of several
// organizations, with the variables beside it.
func TestOrganizationsFile(t *testing.T) {
	text, err := os.ReadFile(testdata + "/private-network-agent/organizations.golden.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "  agent.yaml: |\n")
	file, _, _ := strings.Cut(rest, "\n---\n")
	file = strings.ReplaceAll("\n"+file, "\n    ", "\n")
	given := map[string]string{"POD_NAME": "agent-0", "KUBERNETES_SERVICE_HOST": "10.96.0.1"} // as every pod has them
	for _, match := range regexp.MustCompile(`name: (POSTERN_[A-Z_]+), value: "?([^"}]*)"?}`).FindAllStringSubmatch(string(text), -1) {
		if _, again := given[match[1]]; !again {
			given[match[1]] = match[2] // the agent's; those of the test's pod come later
		}
	}
	for _, doctors := range []string{"POSTERN_ORGANIZATION", "POSTERN_TOKEN_FILE", "POSTERN_PRIVATE_KEY_FILE", "POSTERN_WORKLOAD_TOKEN_FILE", "POSTERN_CA_PIN"} {
		delete(given, doctors)
	}
	settings := config.DefaultAgent()
	err = config.Bind(&settings).Load(config.Environment{
		LookupEnv: func(name string) (string, bool) { v, ok := given[name]; return v, ok },
		ReadFile:  func(string) ([]byte, error) { return []byte(file), nil },
		Hostname:  func() (string, error) { return "agent-0", nil },
	})
	if err != nil {
		t.Fatalf("%v, in\n%s", err, file)
	}
	if len(settings.Organizations) != 3 || !settings.Organizations[1].Gateway || settings.Organizations[0].Allow[0] != "tcp:db.example.org:5432" {
		t.Errorf("it was read as %+v", settings.Organizations)
	}
}

// variables returns the names of the variables of settings.
func variables(set *config.Set) []string {
	var all []string
	for _, f := range set.Fields() {
		all = append(all, f.Env())
	}
	return all
}

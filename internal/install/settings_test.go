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

// variables returns the names of the variables of settings.
func variables(set *config.Set) []string {
	var all []string
	for _, f := range set.Fields() {
		all = append(all, f.Env())
	}
	return all
}

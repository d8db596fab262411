package cli

import (
	"strings"
	"testing"

	"postern.dev/postern/charts"
	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/install"
)

// TestHelmLineFitsTheChart renders the chart with the values of the line that agent new prints.
func TestHelmLineFitsTheChart(t *testing.T) {
	w := waysToStart(api.NewJoin{Agent: "42", Organization: "7", ConnectURL: "tls://hub.example.org:4222"},
		[]string{"tcp:db.example.org:5432", "kubernetes"}, "office.join")
	files, err := charts.Files(charts.Agent)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := install.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(strings.Fields(w.Helm[strings.Index(w.Helm, "helm "):])[4], "/"+chart.Name()) {
		t.Errorf("the line names another chart than %s: %s", chart.Name(), w.Helm)
	}
	var values install.Values
	words := strings.Fields(w.Helm)
	for i, word := range words {
		switch word {
		case "--set":
			err = values.Set(strings.Trim(words[i+1], "'"))
		case "--set-string":
			err = values.SetString(words[i+1])
		default:
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := chart.Render(install.Release{Name: "postern-42", Namespace: "default"}, values)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"secretName: postern-42-join", `value: "tcp:db.example.org:5432,kubernetes"`, `POSTERN_AGENT_ID, value: "42"`} {
		if !strings.Contains(out.Manifests, want) {
			t.Errorf("the manifests have no %s", want)
		}
	}
}

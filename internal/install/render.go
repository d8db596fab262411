package install

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"text/template"
)

// Release says for which release a chart is rendered.
type Release struct {
	Name      string
	Namespace string
	Hooks     bool // render hooks too: tests, and jobs before and after
}

// Rendered is what came of a chart.
type Rendered struct {
	Manifests string // YAML documents, in the order in which they are to be applied
	Notes     string // what to do next, for people
}

// maxName is how long Helm lets the name of a release be.
const maxName = 53

// Render renders the chart. Values that the chart does not take are a *RefusedError, which says what
// to do; so are those that its templates refuse.
func (c *Chart) Render(r Release, v Values) (Rendered, error) {
	if !validName(r.Name, maxName) {
		return Rendered{}, refused("the name %q: want small letters, digits and dashes, at most %d of them", r.Name, maxName)
	}
	if !validName(r.Namespace, 63) {
		return Rendered{}, refused("the namespace %q: want small letters, digits and dashes, at most 63 of them", r.Namespace)
	}
	values, err := overDefaults(c.defaults, v.given)
	if err != nil {
		return Rendered{}, refused("%v", err)
	}
	if err := c.schema.check(values); err != nil {
		return Rendered{}, err
	}
	files, err := c.execute(r, values)
	if err != nil {
		return Rendered{}, err
	}
	out := Rendered{Notes: strings.TrimSpace(files[c.notes]) + "\n"}
	delete(files, c.notes)
	out.Manifests, err = arrange(files, r.Hooks)
	return out, err
}

func refused(format string, args ...any) error {
	return &RefusedError{Problems: []string{fmt.Sprintf(format, args...)}}
}

// validName reports whether a name is one of Kubernetes.
func validName(s string, most int) bool {
	inner := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }
	return s != "" && len(s) <= most && strings.Trim(s, "-") == s &&
		strings.IndexFunc(s, func(r rune) bool { return !inner(r) }) < 0
}

// execute renders every template that is not a part of others.
func (c *Chart) execute(r Release, values map[string]any) (map[string]string, error) {
	root := template.New(c.meta.Name).Option("missingkey=zero")
	root.Funcs(functions(root))
	names := slices.Sorted(maps.Keys(c.templates))
	for _, name := range names {
		if _, err := root.New(name).Parse(c.templates[name]); err != nil {
			return nil, fmt.Errorf("parse chart %s: %w", c.meta.Name, err)
		}
	}
	files := make(map[string]string, len(names))
	for _, name := range names {
		if strings.HasPrefix(path.Base(name), "_") {
			continue
		}
		var b strings.Builder
		err := root.ExecuteTemplate(&b, name, map[string]any{
			"Values":       values,
			"Chart":        c.meta,
			"Release":      r.forTemplates(),
			"Capabilities": c.capabilities(),
			"Template":     map[string]any{"Name": name, "BasePath": path.Join(c.meta.Name, "templates")},
		})
		if refusal, ok := errors.AsType[*RefusedError](err); ok {
			return nil, refusal
		}
		if err != nil {
			return nil, fmt.Errorf("render chart %s: %w", c.meta.Name, err)
		}
		files[name] = withoutNoValue(b.String())
	}
	return files, nil
}

// forTemplates is what templates know of the release.
func (r Release) forTemplates() map[string]any {
	return map[string]any{
		"Name": r.Name, "Namespace": r.Namespace, "Service": "Helm",
		"IsInstall": true, "IsUpgrade": false, "Revision": 1,
	}
}

// capabilities is what templates know of the cluster: nothing, since none is asked.
func (c *Chart) capabilities() map[string]any {
	return map[string]any{"APIVersions": apiVersions{}}
}

// apiVersions is the API versions that a cluster has.
type apiVersions struct{}

// Has reports whether the cluster has a version: nobody knows, so templates take the default.
func (apiVersions) Has(string) bool { return false }

// withoutNoValue takes away what a template writes for a key that is missing, as Helm does.
func withoutNoValue(s string) string { return strings.ReplaceAll(s, "<no value>", "") }

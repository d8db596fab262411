package install

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Chart is a chart that was read: its defaults, its schema and its templates. It is immutable,
// and may be rendered by several goroutines.
type Chart struct {
	meta      metadata
	defaults  map[string]any
	schema    *schema
	templates map[string]string // by path below the chart's name, as Helm calls them
	notes     string            // path of NOTES.txt among them; empty: there is none
}

// metadata is what templates know of Chart.yaml. The names are those by which they ask for it.
type metadata struct {
	Name        string `yaml:"name"`
	Version     string `yaml:"version"`
	AppVersion  string `yaml:"appVersion"`
	Description string `yaml:"description"`
	KubeVersion string `yaml:"kubeVersion"`
	Type        string `yaml:"type"`
	APIVersion  string `yaml:"apiVersion"`
	Home        string `yaml:"home"`
}

// Load reads a chart from its directory. Charts of which others are part are not supported.
func Load(files fs.FS) (*Chart, error) {
	c := &Chart{templates: make(map[string]string)}
	text, err := fs.ReadFile(files, "Chart.yaml")
	if err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	if err := unmarshalInto(text, &c.meta); err != nil {
		return nil, fmt.Errorf("read Chart.yaml: %w", err)
	}
	if text, err = fs.ReadFile(files, "values.yaml"); err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	if c.defaults, err = parseValues(text); err != nil {
		return nil, fmt.Errorf("read values.yaml: %w", err)
	}
	if text, err = fs.ReadFile(files, "values.schema.json"); err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	if c.schema, err = newSchema(text); err != nil {
		return nil, fmt.Errorf("read values.schema.json: %w", err)
	}
	if err := c.readTemplates(files); err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	return c, nil
}

func (c *Chart) readTemplates(files fs.FS) error {
	return fs.WalkDir(files, "templates", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		full := path.Join(c.meta.Name, name)
		if strings.HasSuffix(name, "NOTES.txt") {
			c.notes = full
		}
		c.templates[full] = string(text)
		return nil
	})
}

// Name returns the chart's name.
func (c *Chart) Name() string { return c.meta.Name }

// Version returns the chart's version.
func (c *Chart) Version() string { return c.meta.Version }

// Command sbom writes the bill of materials of a Go program in CycloneDX's JSON
// (version 1.6): the modules that the toolchain recorded in the binary itself. The same
// binary gives the same text.
//
//	sbom FILE > FILE.cdx.json
package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: sbom FILE")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// The parts of CycloneDX 1.6 that are used.
type (
	document struct {
		Format       string       `json:"bomFormat"`
		Spec         string       `json:"specVersion"`
		Serial       string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		Purl       string     `json:"purl"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref string   `json:"ref"`
		On  []string `json:"dependsOn,omitempty"`
	}
)

// write writes the bill of the program in a file.
func write(w io.Writer, file string) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	content, err := os.ReadFile(file) //nolint:gosec // whoever runs it names the file
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	name := filepath.Base(file)
	version := cmp.Or(info.Main.Version, "(devel)")
	self := component{
		Type: "application", Ref: purl(info.Path, version), Name: name, Version: version, Purl: purl(info.Path, version),
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}},
	}
	for _, s := range info.Settings {
		if strings.HasPrefix(s.Key, "GO") || s.Key == "CGO_ENABLED" || s.Key == "-trimpath" {
			self.Properties = append(self.Properties, property{"go:build:" + s.Key, s.Value})
		}
	}
	release := strings.TrimPrefix(info.GoVersion, "go")
	all := []component{{Type: "library", Ref: purl("stdlib", release), Name: "stdlib", Version: release, Purl: purl("stdlib", release)}}
	for _, m := range info.Deps {
		// A module of this repository is replaced by a folder, which is no name for it.
		if m.Replace != nil && m.Replace.Version != "" {
			m = m.Replace
		}
		c := component{Type: "library", Ref: purl(m.Path, m.Version), Name: m.Path, Version: m.Version, Purl: purl(m.Path, m.Version)}
		if m.Sum != "" {
			c.Properties = []property{{"go:h1", m.Sum}} // as it stands in go.sum
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b component) int { return strings.Compare(a.Ref, b.Ref) })
	refs := make([]string, len(all))
	for i, c := range all {
		refs[i] = c.Ref
	}
	doc := document{
		Format: "CycloneDX", Spec: "1.6", Serial: serial(sum), Version: 1, Metadata: metadata{self}, Components: all,
		Dependencies: []dependency{{self.Ref, refs}},
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

func purl(path, version string) string { return "pkg:golang/" + path + "@" + version }

// serial makes a UUID (RFC 9562, version 8) of the program's digest.
func serial(sum [sha256.Size]byte) string {
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	h := hex.EncodeToString(u)
	return "urn:uuid:" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

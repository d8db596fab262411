package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// testOptions are those of an image of two platforms, whose programs are just text.
func testOptions(t *testing.T, out string) options {
	t.Helper()
	o := options{
		name: "postern", version: "v1.2.3", description: "A test.", revision: "0123abc", source: "https://src.test/postern",
		repository: "registry.test/team", out: out, created: time.Unix(1700000000, 0).UTC(),
	}
	dir := t.TempDir()
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(dir, arch)
		for name, content := range map[string]string{file: "program of " + arch, file + ".cdx.json": `{"bomFormat":"CycloneDX","arch":"` + arch + `"}`} {
			if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o.programs = append(o.programs, program{platform: v1.Platform{OS: "linux", Architecture: arch}, file: file})
	}
	return o
}

func buildT(t *testing.T) (options, v1.ImageIndex) {
	t.Helper()
	o := testOptions(t, t.TempDir())
	if _, err := build(o); err != nil {
		t.Fatal(err)
	}
	top, err := layout.ImageIndexFromPath(filepath.Join(o.out, o.name))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top); err != nil {
		t.Fatalf("the layout does not hold what it says: %v", err)
	}
	return o, top
}

// TestImage looks at everything that an image promises.
func TestImage(t *testing.T) {
	o, top := buildT(t)
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 3 {
		t.Fatalf("the layout lists %+v, %v; want the index and two bills", manifest, err)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil || list.MediaType != types.OCIImageIndex || list.Annotations["org.opencontainers.image.version"] != "v1.2.3" {
		t.Fatalf("the index is %+v, %v", list, err)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		d := list.Manifests[i]
		if d.Platform == nil || d.Platform.String() != "linux/"+arch || d.MediaType != types.OCIManifestSchema1 {
			t.Errorf("image %d is %+v", i, d)
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, o, img, arch)
		checkBill(t, top, manifest.Manifests[i+1], d, arch)
	}
}

func checkImage(t *testing.T, o options, img v1.Image, arch string) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != arch || !config.Created.Equal(o.created) || config.Config.User != "65532:65532" ||
		!slices.Equal(config.Config.Entrypoint, []string{"/usr/local/bin/postern"}) {
		t.Errorf("%s: configuration %+v", arch, config)
	}
	for label, want := range map[string]string{
		"title": "postern", "version": "v1.2.3", "revision": "0123abc", "source": "https://src.test/postern",
		"licenses": "Apache-2.0", "created": "2023-11-14T22:13:20Z", "description": "A test.",
	} {
		if got := config.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("%s: label %s is %q, want %q", arch, label, got, want)
		}
	}
	if manifest, err := img.Manifest(); err != nil || manifest.Config.MediaType != types.OCIConfigJSON || len(manifest.Layers) != 2 ||
		manifest.Layers[0].MediaType != types.OCILayer || manifest.Annotations["org.opencontainers.image.revision"] != "0123abc" {
		t.Errorf("%s: manifest %+v, %v", arch, manifest, err)
	}

	files := map[string]*tar.Header{}
	contents := map[string]string{}
	r := mutate.Extract(img)
	defer r.Close()
	for unpacked := tar.NewReader(r); ; {
		header, err := unpacked.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(unpacked)
		if err != nil {
			t.Fatal(err)
		}
		name := "/" + strings.TrimSuffix(header.Name, "/")
		files[name], contents[name] = header, string(content)
		if !header.ModTime.Equal(o.created) {
			t.Errorf("%s: %s is of %s", arch, name, header.ModTime)
		}
	}
	for name, want := range map[string]struct {
		mode int64
		uid  int
	}{
		"/usr/local/bin/postern":             {0o755, 0},
		"/etc/passwd":                        {0o644, 0},
		"/etc/ssl/certs/ca-certificates.crt": {0o644, 0},
		"/home/postern":                      {0o700, 65532},
		"/tmp":                               {0o1777, 0},
	} {
		if h := files[name]; h == nil || h.Mode != want.mode || h.Uid != want.uid {
			t.Errorf("%s: %s is %+v, want %+v", arch, name, h, want)
		}
	}
	if got := contents["/usr/local/bin/postern"]; got != "program of "+arch {
		t.Errorf("%s: the program is %q", arch, got)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(contents["/etc/ssl/certs/ca-certificates.crt"])) || strings.Count(contents["/etc/ssl/certs/ca-certificates.crt"], "BEGIN") < 100 {
		t.Errorf("%s: the authorities are %d bytes", arch, len(contents["/etc/ssl/certs/ca-certificates.crt"]))
	}
}

// checkBill looks at an artifact as a tool that follows the specification does.
func checkBill(t *testing.T, top v1.ImageIndex, d, subject v1.Descriptor, arch string) {
	t.Helper()
	img, err := top.Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	if d.ArtifactType != billType || manifest.ArtifactType != billType || manifest.Subject == nil || manifest.Subject.Digest != subject.Digest ||
		manifest.Subject.Size != subject.Size || manifest.Config.MediaType != emptyType {
		t.Errorf("%s: the bill is %+v: %s", arch, d, raw)
	}
	if got := billOf(t, img); !strings.Contains(got, arch) {
		t.Errorf("%s: the bill says %q", arch, got)
	}
}

func billOf(t *testing.T, img v1.Image) string {
	t.Helper()
	manifest, err := img.Manifest()
	if err != nil || len(manifest.Layers) != 1 || manifest.Layers[0].MediaType != billType {
		t.Fatalf("the bill's manifest is %+v, %v", manifest, err)
	}
	layer, err := img.LayerByDigest(manifest.Layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	r, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestSameBytes builds twice, the second time over another image's remains.
func TestSameBytes(t *testing.T) {
	one := testOptions(t, t.TempDir())
	two := testOptions(t, t.TempDir())
	other := two
	other.version = "v0.0.1"
	other.created = time.Unix(1600000000, 0).UTC()
	for _, o := range []options{one, other, two} {
		if _, err := build(o); err != nil {
			t.Fatal(err)
		}
	}
	a, b := readAll(t, one.out), readAll(t, two.out)
	for name := range b {
		if strings.Contains(name, "v0.0.1") {
			delete(b, name) // an archive of another version is not in the way
		}
	}
	if len(a) != len(b) || len(a) < 10 {
		t.Errorf("%d and %d files", len(a), len(b))
	}
	for name, content := range a {
		if !bytes.Equal(content, b[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

func readAll(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		all[rel], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestArchive unpacks an archive, which is a layout of its own, and finds the very image of the index.
func TestArchive(t *testing.T) {
	o, top := buildT(t)
	dir := t.TempDir()
	f, err := os.Open(filepath.Join(o.out, "postern_v1.2.3_linux_arm64.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, filepath.FromSlash(header.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unpacked, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(unpacked); err != nil {
		t.Fatal(err)
	}
	list, err := unpacked.IndexManifest()
	if err != nil || len(list.Manifests) != 1 {
		t.Fatalf("the archive lists %+v, %v", list, err)
	}
	d := list.Manifests[0]
	if d.Annotations[containerdName] != "registry.test/team/postern:v1.2.3" || d.Platform.String() != "linux/arm64" {
		t.Errorf("it is imported as %+v", d)
	}
	outer, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := top.ImageIndex(outer.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := index.IndexManifest(); err != nil || whole.Manifests[1].Digest != d.Digest {
		t.Errorf("the archive's image is %s, the index's %+v, %v", d.Digest, whole, err)
	}
}

// TestPush pushes to a registry that knows referrers, and to one that does not: bills are found in both.
func TestPush(t *testing.T) {
	o, _ := buildT(t)
	for what, knows := range map[string]bool{"with referrers": true, "of old": false} {
		t.Run(what, func(t *testing.T) {
			server := httptest.NewServer(registry.New(registry.WithReferrersSupport(knows)))
			defer server.Close()
			reference := strings.TrimPrefix(server.URL, "http://") + "/team/postern:v1.2.3"
			var out strings.Builder
			if err := run(t.Context(), []string{"push", "-layout", filepath.Join(o.out, o.name), reference}, &out); err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(out.String(), "sha256:"); got != 3 {
				t.Errorf("it tells of %d manifests:\n%s", got, out.String())
			}
			tag, err := name.NewTag(reference)
			if err != nil {
				t.Fatal(err)
			}
			index, err := remote.Index(tag)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(index); err != nil {
				t.Error(err)
			}
			list, err := index.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list.Manifests {
				checkReferrer(t, tag.Digest(d.Digest.String()), d.Platform.Architecture)
			}
		})
	}
}

func checkReferrer(t *testing.T, image name.Digest, arch string) {
	t.Helper()
	referrers, err := remote.Referrers(image)
	if err != nil {
		t.Fatal(err)
	}
	// The library's registry lists the type of the configuration instead of the artifact's own.
	list, err := referrers.IndexManifest()
	if err != nil || len(list.Manifests) != 1 || !slices.Contains([]string{billType, emptyType}, list.Manifests[0].ArtifactType) {
		t.Fatalf("%s: the referrers are %+v, %v", arch, list, err)
	}
	img, err := remote.Image(image.Digest(list.Manifests[0].Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	if got := billOf(t, img); !strings.Contains(got, arch) {
		t.Errorf("%s: the bill says %q", arch, got)
	}
}

// TestBadInput holds what is refused, and that nothing is removed that is no layout.
func TestBadInput(t *testing.T) {
	ctx := context.Background()
	good := testOptions(t, t.TempDir())
	amd64 := "linux/amd64=" + good.programs[0].file
	tests := []struct {
		args []string
		want string
	}{
		{nil, "usage"},
		{[]string{"pull"}, "usage"},
		{[]string{"build", "-name", "postern", "-version", "v1.2.3"}, "no program"},
		{[]string{"build", "-name", "Postern", "-version", "v1.2.3", "-program", amd64}, "small letters"},
		{[]string{"build", "-name", "../x", "-version", "v1.2.3", "-program", amd64}, "small letters"},
		{[]string{"build", "-name", "postern", "-version", "1.2.3", "-program", amd64}, "v1.2.3"},
		{[]string{"build", "-name", "postern", "-version", "v1/..", "-program", amd64}, "v1.2.3"},
		{[]string{"build", "-name", "postern", "-version", "v1.2.3", "-program", "linux=x"}, "OS/ARCH=FILE"},
		{[]string{"build", "-name", "postern", "-version", "v1.2.3", "-program", "linux/amd64"}, "OS/ARCH=FILE"},
		{[]string{"push", "registry.test/x:v1"}, "usage"},
		{[]string{"push", "-layout", t.TempDir(), "postern"}, "reference"},
		{[]string{"push", "-layout", t.TempDir(), "registry.test/x:v1"}, "layout"},
	}
	for _, tt := range tests {
		if len(tt.args) > 0 && tt.args[0] == "build" {
			tt.args = append([]string{"build", "-out", t.TempDir()}, tt.args[1:]...)
		}
		if err := run(ctx, tt.args, io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want one with %q", tt.args, err, tt.want)
		}
	}
	missing := good
	missing.programs = []program{{platform: good.programs[0].platform, file: filepath.Join(t.TempDir(), "none")}}
	if _, err := build(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
	if err := os.Remove(good.programs[0].file + ".cdx.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := build(good); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a bill: %v", err)
	}

	kept := testOptions(t, t.TempDir())
	mine := filepath.Join(kept.out, "postern", "mine")
	if err := os.MkdirAll(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := build(kept); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("a folder that was no layout is gone: %v", err)
	}
}

func TestEpoch(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "0": 0, "1700000000": 1700000000} {
		if got, err := epoch(s); err != nil || got.Unix() != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"today", "-1", "1.5"} {
		if _, err := epoch(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func example(t *testing.T) Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("not really a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Image{
		Ref:        "postern.test/example:1",
		Files:      map[string]string{"/opt/bin/program": program},
		Links:      map[string]string{"/opt/bin/alias": "program"},
		Data:       map[string]string{"/etc/passwd": "root:x:0:0:root:/:/opt/bin/program\n"},
		Entrypoint: []string{"/opt/bin/program"},
	}
}

// unpack reads a tar file into memory.
func unpack(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for in := tar.NewReader(r); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = append(content, header.Linkname...)
	}
}

func TestArchiveIsWhole(t *testing.T) {
	var buf bytes.Buffer
	if err := example(t).Write(&buf); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, &buf)
	blob := func(d descriptor) []byte {
		t.Helper()
		name := "blobs/" + strings.ReplaceAll(d.Digest, ":", "/")
		content, ok := files[name]
		sum := sha256.Sum256(content)
		if !ok || len(content) != d.Size || "sha256:"+hex.EncodeToString(sum[:]) != d.Digest {
			t.Fatalf("the blob %s has %d bytes and is not what its descriptor says", name, len(content))
		}
		return content
	}
	decode := func(content []byte, into any) {
		t.Helper()
		if err := json.Unmarshal(content, into); err != nil {
			t.Fatal(err)
		}
	}

	var top index
	decode(files["index.json"], &top)
	if ref := top.Manifests[0].Annotations[nameAnnotation]; ref != "postern.test/example:1" {
		t.Errorf("containerd would call the image %q", ref)
	}
	var m manifest
	decode(blob(top.Manifests[0]), &m)
	var c config
	decode(blob(m.Config), &c)
	if c.RootFS.DiffIDs[0] != m.Layers[0].Digest {
		t.Errorf("the configuration names the layer %s, the manifest %s", c.RootFS.DiffIDs[0], m.Layers[0].Digest)
	}
	layer := unpack(t, bytes.NewReader(blob(m.Layers[0])))
	for name, want := range map[string]string{"opt/bin/program": "not really a program", "opt/bin/alias": "program", "opt/": "", "opt/bin/": "", "tmp/": ""} {
		if got, ok := layer[name]; !ok || string(got) != want {
			t.Errorf("the layer holds %q as %s (there: %t)", got, name, ok)
		}
	}
}

func TestArchiveIsReproducible(t *testing.T) {
	var first, second bytes.Buffer
	m := example(t)
	if err := errors.Join(m.Write(&first), m.Write(&second)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image gave two archives")
	}
}

func TestMissingFile(t *testing.T) {
	m := Image{Ref: "postern.test/example:1", Files: map[string]string{"/program": filepath.Join(t.TempDir(), "none")}}
	if err := m.Write(io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image of a missing file gave %v", err)
	}
}

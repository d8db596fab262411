package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTarRoundTrip(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{"a": "one", "d/b": strings.Repeat("two", 100_000), "d/empty": ""} {
		name = filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := create(&archive, "/", []string{from}); err != nil {
		t.Fatal(err)
	}
	archive.Write(make([]byte, 10240)) // as kubectl pads it
	if err := extract(&archive, to); err != nil {
		t.Fatal(err)
	}
	if archive.Len() != 0 {
		t.Errorf("%d bytes of padding were left unread", archive.Len())
	}
	for name, want := range map[string]string{"a": "one", "link": "one", "d/empty": ""} {
		got, err := os.ReadFile(filepath.Join(to, from, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestTarStaysInItsFolder(t *testing.T) {
	for _, name := range []string{"../outside", "/etc/outside", "d/../../outside"} {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := extract(&archive, t.TempDir()); err == nil {
			t.Errorf("%s was extracted", name)
		}
	}
}

func TestTruncatedArchive(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := create(&archive, "/", []string{name}); err != nil {
		t.Fatal(err)
	}
	if err := extract(io.LimitReader(&archive, 50_000), t.TempDir()); err == nil {
		t.Error("half an archive was taken for a whole one")
	}
}

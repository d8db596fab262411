// Package image writes container images as OCI archives, from files on disk and with no builder:
// one layer, reproducible, ready for "ctr images import".
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
)

// Image says what an image holds.
type Image struct {
	// Ref is the full reference, such as "registry.test/tool:1".
	Ref string
	// Files maps absolute paths in the image to executables on disk.
	Files map[string]string
	// Links maps absolute paths in the image to the targets of symbolic links.
	Links map[string]string
	// Data maps absolute paths in the image to the content of plain files.
	Data map[string]string
	// Entrypoint is the command; Kubernetes calls it command and overrides it by that name.
	Entrypoint []string
	// Env is the environment, as NAME=VALUE.
	Env []string
	// User is the numeric user, "" for root.
	User string
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
	// nameAnnotation is where containerd looks for the reference under which it imports.
	nameAnnotation = "io.containerd.image.name"
	refAnnotation  = "org.opencontainers.image.ref.name"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

type config struct {
	Architecture string     `json:"architecture"`
	OS           string     `json:"os"`
	Config       runConfig  `json:"config"`
	RootFS       rootFS     `json:"rootfs"`
	History      []struct{} `json:"history"`
}

type runConfig struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// WriteFile writes the image's archive to the named file.
func (m Image) WriteFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("write the image %s: %w", m.Ref, err)
	}
	if err := m.Write(f); err != nil {
		f.Close()
		return fmt.Errorf("write the image %s: %w", m.Ref, err)
	}
	return f.Close()
}

// Write writes the image's archive.
func (m Image) Write(w io.Writer) error {
	layer, err := m.layer()
	if err != nil {
		return err
	}
	a := archive{tar: tar.NewWriter(w)}
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	layerBlob := a.blob(layerType, layer)
	configBlob := a.json(configType, config{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Config:       runConfig{Entrypoint: m.Entrypoint, Env: m.Env, User: m.User},
		RootFS:       rootFS{Type: "layers", DiffIDs: []string{layerBlob.Digest}},
		History:      []struct{}{{}},
	})
	manifestBlob := a.json(manifestType, manifest{
		SchemaVersion: 2,
		MediaType:     manifestType,
		Config:        configBlob,
		Layers:        []descriptor{layerBlob},
	})
	manifestBlob.Annotations = map[string]string{nameAnnotation: m.Ref, refAnnotation: path.Base(m.Ref)}
	manifestBlob.Platform = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	top, err := json.Marshal(index{SchemaVersion: 2, Manifests: []descriptor{manifestBlob}})
	if err != nil {
		return err
	}
	a.file("index.json", top)
	return a.close()
}

// archive is a tar file that keeps its first error.
type archive struct {
	tar *tar.Writer
	err error
}

func (a *archive) file(name string, content []byte) {
	if a.err != nil {
		return
	}
	if a.err = a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); a.err != nil {
		return
	}
	_, a.err = a.tar.Write(content)
}

func (a *archive) blob(mediaType string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	a.file("blobs/sha256/"+digest, content)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(content)}
}

func (a *archive) json(mediaType string, value any) descriptor {
	content, err := json.Marshal(value)
	if err != nil && a.err == nil {
		a.err = err
	}
	return a.blob(mediaType, content)
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.tar.Close()
}

// layer is the image's file system as a tar file, the same for the same content.
func (m Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	for _, entry := range m.entries() {
		if err := out.WriteHeader(&entry.header); err != nil {
			return nil, err
		}
		if entry.source == "" {
			if _, err := io.WriteString(out, entry.content); err != nil {
				return nil, err
			}
			continue
		}
		if err := appendFile(out, entry.source); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func appendFile(out *tar.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}

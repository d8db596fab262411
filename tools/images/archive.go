package main

import (
	"archive/tar"
	"encoding/json"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// containerdName is where containerd looks for the reference under which it imports.
const containerdName = "io.containerd.image.name"

// writeArchive writes one platform's image as an OCI layout in a tar file. Its digest is that of
// the same image in a registry.
func writeArchive(name string, img v1.Image, platform v1.Platform, reference string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := packArchive(tar.NewWriter(f), img, platform, reference); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func packArchive(w *tar.Writer, img v1.Image, platform v1.Platform, reference string) error {
	add := func(name string, content []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	descriptor, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	descriptor.Platform = &platform
	// The whole reference serves both: skopeo and podman read it as a name too.
	descriptor.Annotations = map[string]string{containerdName: reference, refAnnotation: reference}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*descriptor}})
	if err != nil {
		return err
	}
	if err := add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := add("index.json", index); err != nil {
		return err
	}
	blobs, order, err := blobsOf(img)
	if err != nil {
		return err
	}
	for _, digest := range order {
		if err := add("blobs/"+digest.Algorithm+"/"+digest.Hex, blobs[digest]); err != nil {
			return err
		}
	}
	return w.Close()
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	billType  = "application/vnd.cyclonedx+json"
	emptyType = "application/vnd.oci.empty.v1+json"
)

// emptyConfig is the configuration of an artifact that has none (OCI image specification 1.1).
const emptyConfig = "{}"

// bill is a bill of materials as an artifact that refers to an image: its subject.
type bill struct {
	content  []byte
	manifest []byte
}

// readBill reads the bill beside a program.
func readBill(programFile string, annotations map[string]string, subject v1.Descriptor) (v1.Image, error) {
	content, err := os.ReadFile(programFile + ".cdx.json")
	if err != nil {
		return nil, fmt.Errorf("read the bill of materials, which tools/sbom writes: %w", err)
	}
	digest, size, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	config, configSize, err := v1.SHA256(bytes.NewReader([]byte(emptyConfig)))
	if err != nil {
		return nil, err
	}
	subject.Annotations, subject.Platform = nil, nil
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  billType,
		Config:        v1.Descriptor{MediaType: emptyType, Digest: config, Size: configSize},
		Layers:        []v1.Descriptor{{MediaType: billType, Digest: digest, Size: size}},
		Subject:       &subject,
		Annotations:   map[string]string{"org.opencontainers.image.created": annotations["org.opencontainers.image.created"]},
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(bill{content: content, manifest: manifest})
}

func (b bill) RawConfigFile() ([]byte, error) { return []byte(emptyConfig), nil }

func (b bill) RawManifest() ([]byte, error) { return b.manifest, nil }

func (b bill) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// LayerByDigest returns the configuration too: both are blobs.
func (b bill) LayerByDigest(digest v1.Hash) (partial.CompressedLayer, error) {
	for _, layer := range []v1.Layer{static.NewLayer(b.content, billType), static.NewLayer([]byte(emptyConfig), emptyType)} {
		if own, err := layer.Digest(); err == nil && own == digest {
			return layer, nil
		}
	}
	return nil, fmt.Errorf("the bill of materials has no blob %s", digest)
}

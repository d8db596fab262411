package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// options say what to build.
type options struct {
	name, version, description string
	revision, source           string
	repository, out            string
	created                    time.Time
	programs                   []program
}

// program is the program for one platform.
type program struct {
	platform v1.Platform
	file     string
}

const refAnnotation = "org.opencontainers.image.ref.name"

var (
	validName    = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	validVersion = regexp.MustCompile(`^v[0-9][0-9A-Za-z.-]{0,126}$`)
)

// build writes the layout and the archives, and returns a line about each.
func build(o options) ([]string, error) {
	switch {
	case !validName.MatchString(o.name):
		return nil, fmt.Errorf("name %q: want small letters, digits and dashes", o.name)
	case !validVersion.MatchString(o.version):
		return nil, fmt.Errorf("version %q: want v1.2.3, fit for an image's tag", o.version)
	case len(o.programs) == 0:
		return nil, errors.New("no program: name at least one with -program OS/ARCH=FILE")
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil { //nolint:gosec // what is built is for everyone
		return nil, fmt.Errorf("make the folder of images: %w", err)
	}
	var lines []string
	var images, bills []mutate.IndexAddendum
	for _, p := range o.programs {
		img, err := newImage(o, p)
		if err != nil {
			return nil, fmt.Errorf("the image for %s: %w", p.platform, err)
		}
		subject, err := partial.Descriptor(img)
		if err != nil {
			return nil, err
		}
		bill, err := readBill(p.file, o.annotations(), *subject)
		if err != nil {
			return nil, err
		}
		platform := p.platform
		images = append(images, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
		bills = append(bills, mutate.IndexAddendum{Add: bill, Descriptor: v1.Descriptor{ArtifactType: billType}})
		archive := filepath.Join(o.out, fmt.Sprintf("%s_%s_%s_%s.tar", o.name, o.version, platform.OS, platform.Architecture))
		if err := writeArchive(archive, img, platform, o.reference()); err != nil {
			return nil, fmt.Errorf("write %s: %w", archive, err)
		}
		lines = append(lines, fmt.Sprintf("%s  %s", subject.Digest, archive))
	}
	index := mutate.IndexMediaType(mutate.AppendManifests(empty.Index, images...), types.OCIImageIndex)
	index, ok := mutate.Annotations(index, o.annotations()).(v1.ImageIndex)
	if !ok {
		return nil, errors.New("an index with annotations is no index")
	}
	digest, err := index.Digest()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.out, o.name)
	if err := writeLayout(dir, index, bills, o.version); err != nil {
		return nil, fmt.Errorf("write the layout %s: %w", dir, err)
	}
	return append(lines, fmt.Sprintf("%s  %s", digest, dir)), nil
}

// reference is the name under which an archive is imported.
func (o options) reference() string { return o.repository + "/" + o.name + ":" + o.version }

// annotations are those of the image and its index, and the labels of its configuration.
func (o options) annotations() map[string]string {
	const prefix = "org.opencontainers.image."
	all := map[string]string{
		prefix + "title":    o.name,
		prefix + "version":  o.version,
		prefix + "created":  o.created.Format(time.RFC3339),
		prefix + "licenses": "Apache-2.0",
		prefix + "vendor":   "Postern",
	}
	for name, value := range map[string]string{"description": o.description, "revision": o.revision, "source": o.source} {
		if value != "" {
			all[prefix+name] = value
		}
	}
	return all
}

// writeLayout writes a layout of one index, and of the bills that refer to its images.
func writeLayout(dir string, index v1.ImageIndex, bills []mutate.IndexAddendum, tag string) error {
	// An earlier build's blobs must not stay; but only what is a layout is removed.
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err == nil {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	top := mutate.AppendManifests(empty.Index, append([]mutate.IndexAddendum{{
		Add:        index,
		Descriptor: v1.Descriptor{Annotations: map[string]string{refAnnotation: tag}},
	}}, bills...)...)
	_, err := layout.Write(dir, top)
	return err
}

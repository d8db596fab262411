package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// push copies a layout to a registry: the index under its tag, then what refers to its images.
// Credentials are those of "docker login". It returns a line about each manifest.
func push(ctx context.Context, dir, reference string) ([]string, error) {
	tag, err := name.NewTag(reference, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("the reference: %w", err)
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("read the layout: %w", err)
	}
	content, err := top.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read the layout: %w", err)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	var lines []string
	for _, d := range content.Manifests {
		line, err := pushOne(top, d, tag, options)
		if err != nil {
			return lines, fmt.Errorf("push %s: %w", d.Digest, err)
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return nil, errors.New("the layout is empty")
	}
	return lines, nil
}

func pushOne(top v1.ImageIndex, d v1.Descriptor, tag name.Tag, options []remote.Option) (string, error) {
	if d.MediaType.IsIndex() {
		index, err := top.ImageIndex(d.Digest)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s  %s", d.Digest, tag), remote.WriteIndex(tag, index, options...)
	}
	img, err := top.Image(d.Digest)
	if err != nil {
		return "", err
	}
	// What refers to an image is found through it, and needs no tag.
	return fmt.Sprintf("%s  %s", d.Digest, d.ArtifactType), remote.Write(tag.Digest(d.Digest.String()), img, options...)
}

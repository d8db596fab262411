package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	// uid is nobody in particular, and never root: Kubernetes' runAsNonRoot needs a number.
	uid  = 65532
	user = "65532:65532"
	// rootsFile is where Go, curl and OpenSSL of Debian look for authorities.
	rootsFile = "/etc/ssl/certs/ca-certificates.crt"
	binFolder = "/usr/local/bin"
)

// newImage makes the image of one program: a layer of what is always the same, and one of the
// program, so that a new version costs a node only the program.
func newImage(o options, p program) (v1.Image, error) {
	content, err := os.ReadFile(p.file)
	if err != nil {
		return nil, err
	}
	base, err := newLayer(o.created, baseFiles())
	if err != nil {
		return nil, err
	}
	entrypoint := binFolder + "/" + o.name
	own, err := newLayer(o.created, []file{
		{name: "/usr", mode: 0o755}, {name: "/usr/local", mode: 0o755}, {name: binFolder, mode: 0o755},
		{name: entrypoint, mode: 0o755, content: content},
	})
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: o.created}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img,
		mutate.Addendum{Layer: base, History: v1.History{Created: created, CreatedBy: "authorities, user"}},
		mutate.Addendum{Layer: own, History: v1.History{Created: created, CreatedBy: o.name + " " + o.version}})
	if err != nil {
		return nil, err
	}
	img, err = mutate.ConfigFile(img, o.config(img, p.platform, entrypoint))
	if err != nil {
		return nil, err
	}
	annotated, ok := mutate.Annotations(img, o.annotations()).(v1.Image)
	if !ok {
		return nil, errors.New("an image with annotations is no image")
	}
	return annotated, nil
}

// config is the image's configuration, on top of what its layers say.
func (o options) config(img v1.Image, platform v1.Platform, entrypoint string) *v1.ConfigFile {
	config := &v1.ConfigFile{}
	if old, err := img.ConfigFile(); err == nil {
		config = old.DeepCopy()
	}
	config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	config.Created = v1.Time{Time: o.created}
	config.Config = v1.Config{
		Entrypoint: []string{entrypoint},
		User:       user,
		WorkingDir: "/",
		Env:        []string{"PATH=" + binFolder, "SSL_CERT_FILE=" + rootsFile},
		Labels:     o.annotations(),
	}
	return config
}

// file is a file of a layer; without content it is a folder.
type file struct {
	name    string
	mode    int64
	owner   int
	content []byte
}

// baseFiles are what a program needs beside itself.
func baseFiles() []file {
	return []file{
		{name: "/etc", mode: 0o755},
		{name: "/etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/:/sbin/nologin\npostern:x:65532:65532:postern:/home/postern:/sbin/nologin\n")},
		{name: "/etc/group", mode: 0o644, content: []byte("root:x:0:\npostern:x:65532:\n")},
		{name: "/etc/ssl", mode: 0o755},
		{name: "/etc/ssl/certs", mode: 0o755},
		{name: rootsFile, mode: 0o644, content: roots()},
		{name: "/home", mode: 0o755},
		{name: "/home/postern", mode: 0o700, owner: uid},
		{name: "/tmp", mode: 0o1777},
	}
}

// roots are the authorities that Mozilla trusts, in PEM. One that is trusted only for
// certificates of before some day is left out: a file cannot say so.
func roots() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return out.Bytes()
}

// newLayer packs files in the order in which they are named.
func newLayer(at time.Time, files []file) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := tar.Header{
			Name: strings.TrimPrefix(f.name, "/"), Mode: f.mode, Uid: f.owner, Gid: f.owner, ModTime: at,
			Typeflag: tar.TypeReg, Size: int64(len(f.content)), Format: tar.FormatUSTAR,
		}
		if f.content == nil {
			header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		}
		if err := w.WriteHeader(&header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}

// blobsOf lists the blobs of an image in a fixed order: its manifest, its configuration, its layers.
func blobsOf(img v1.Image) (map[v1.Hash][]byte, []v1.Hash, error) {
	blobs := map[v1.Hash][]byte{}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, nil, err
	}
	name, err := img.ConfigName()
	if err != nil {
		return nil, nil, err
	}
	blobs[digest], blobs[name] = manifest, config
	layers, err := img.Layers()
	if err != nil {
		return nil, nil, err
	}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return nil, nil, err
		}
		content, err := layer.Compressed()
		if err != nil {
			return nil, nil, err
		}
		blobs[digest], err = io.ReadAll(content)
		if err != nil {
			return nil, nil, err
		}
	}
	order := slices.SortedFunc(maps.Keys(blobs), func(a, b v1.Hash) int { return strings.Compare(a.Hex, b.Hex) })
	return blobs, order, nil
}

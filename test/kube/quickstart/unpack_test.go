//go:build linux

package quickstart_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strings"
)

// unpackProgram takes a program out of an image's archive, so that the host runs the very same.
func unpackProgram(archive, name, target string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for blobs := tar.NewReader(f); ; {
		header, err := blobs.Next()
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", name, archive, err)
		}
		if !strings.HasPrefix(header.Name, "blobs/") {
			continue
		}
		blob, err := io.ReadAll(blobs)
		if err != nil {
			return err
		}
		unzipped, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			continue // no layer
		}
		for layer := tar.NewReader(unzipped); ; {
			header, err := layer.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			if header.Name != name {
				continue
			}
			program, err := io.ReadAll(layer)
			if err != nil {
				return err
			}
			return os.WriteFile(target, program, 0o755)
		}
	}
}

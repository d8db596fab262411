// Package bins builds the real programs that the Kubernetes tests run: Kubernetes, etcd, Helm and
// CoreDNS, from the Go module proxy and from nothing else.
//
// They are built once into the user's cache directory, in a folder named after the versions, the
// flags and the toolchain, so that a clean checkout finds them again. A cold build takes about
// twenty minutes on two cores; concurrent callers wait for the one that builds.
package bins

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"postern.dev/postern/test/kube/filelock"
)

//go:embed modules
var modules embed.FS

// Logf reports progress, one line a call.
type Logf func(format string, args ...any)

// Set is a folder of built programs.
type Set struct {
	dir string
}

// Dir is the folder that holds the programs, fit for PATH.
func (s *Set) Dir() string { return s.dir }

// Path is the absolute path of one program.
func (s *Set) Path(name string) string { return filepath.Join(s.dir, name) }

// Ensure returns the programs, building those that are missing. It fails if ctx ends, if the
// module proxy cannot be reached, or if a build fails, and then says where its output is.
func Ensure(ctx context.Context, logf Logf) (*Set, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the user's cache directory: %w", err)
	}
	return ensure(ctx, filepath.Join(cache, "postern", "kube"), builds(), logf)
}

func ensure(ctx context.Context, base string, list []build, logf Logf) (*Set, error) {
	key, err := cacheKey(list)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(base, key)
	set := &Set{dir: filepath.Join(root, "bin")}
	if len(missing(set, list)) == 0 {
		return set, nil
	}
	if err := os.MkdirAll(set.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of built programs: %w", err)
	}
	lock, err := filelock.Acquire(ctx, filepath.Join(root, "lock"), filelock.Logf(logf))
	if err != nil {
		return nil, fmt.Errorf("wait for another build: %w", err)
	}
	defer lock.Release()

	todo := missing(set, list)
	start := time.Now()
	for i, b := range todo {
		logf("bins: building %s (%d of %d) into %s", b.title(), i+1, len(todo), set.dir)
		if err := b.run(ctx, root, set.dir, logf); err != nil {
			return nil, err
		}
	}
	if len(todo) > 0 {
		logf("bins: built in %s", time.Since(start).Round(time.Second))
	}
	return set, nil
}

// missing lists the builds of which a program is not there yet.
func missing(set *Set, list []build) []build {
	var todo []build
	for _, b := range list {
		for _, name := range b.programs() {
			if _, err := os.Stat(set.Path(name)); errors.Is(err, fs.ErrNotExist) {
				todo = append(todo, b)
				break
			}
		}
	}
	return todo
}

// cacheKey names the folder after everything that shapes the programs.
func cacheKey(list []build) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, b := range list {
		fmt.Fprintln(h, b.module, strings.Join(b.args("OUT"), " "))
		for _, name := range b.templates() {
			text, err := modules.ReadFile(name)
			if err != nil {
				return "", fmt.Errorf("read the embedded module file %s: %w", name, err)
			}
			fmt.Fprintln(h, name, len(text))
			h.Write(text)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

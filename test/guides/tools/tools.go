// Package tools builds the real programs that the guides tell how to configure, from their Go
// modules as they were published.
//
// A program is built in a copy of its module, with the module's own go.mod, since most of them
// have replace directives, which count in the main module only. What is built stays in the user's
// cache directory, in a folder named after everything that shapes it, so that a clean checkout
// finds it again; one is built at a time.
package tools

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"postern.dev/postern/test/kube/filelock"
)

// stubs are folders that are put into a copy before it is built.
//
//go:embed all:stubs
var stubs embed.FS

// Logf reports progress, one line a call.
type Logf func(format string, args ...any)

// Tool is one program of one Go module.
type Tool struct {
	// Name is the program's file name.
	Name string
	// Module and Version say what is built, and Sum is the module's checksum as in a go.sum.
	Module, Version, Sum string
	// Package is the main package, relative to the module; "" for a module that has manifests only.
	Package string
	// Edits are arguments of go mod edit, for what the published go.mod cannot say: its local
	// replacements are not part of a module.
	Edits []string
	// Stub is a folder of stubs that is copied over the module, "" for none.
	Stub string
}

// Built is a program, and the module that it is from.
type Built struct {
	// Path is the program.
	Path string
	// Source is the folder of the published module, for its manifests.
	Source string
}

// Ensure returns the program, building it if it is missing. Its errors are of type *Unavailable if
// the module proxy does not have the module or one that it needs.
func (t Tool) Ensure(ctx context.Context, logf Logf) (Built, error) {
	source, err := t.Source(ctx)
	if err != nil {
		return Built{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Built{}, fmt.Errorf("find the user's cache directory: %w", err)
	}
	key, err := t.key()
	if err != nil {
		return Built{}, err
	}
	root := filepath.Join(cache, "postern", "guides")
	built := Built{Path: filepath.Join(root, t.Name+"-"+t.Version+"-"+key, t.Name), Source: source}
	if _, err := os.Stat(built.Path); err == nil {
		return built, nil
	}
	if err := os.MkdirAll(filepath.Dir(built.Path), 0o755); err != nil {
		return Built{}, fmt.Errorf("make the folder of %s: %w", t.Name, err)
	}
	lock, err := filelock.Acquire(ctx, filepath.Join(root, "lock"), filelock.Logf(logf))
	if err != nil {
		return Built{}, fmt.Errorf("wait for another build: %w", err)
	}
	defer lock.Release()
	if _, err := os.Stat(built.Path); err == nil {
		return built, nil
	}
	began := time.Now()
	logf("tools: building %s %s, which takes minutes", t.Name, t.Version)
	if err := t.build(ctx, source, built.Path); err != nil {
		return Built{}, err
	}
	logf("tools: %s built in %s", t.Name, time.Since(began).Round(time.Second))
	return built, nil
}

// key is a digest of all that shapes the program.
func (t Tool) key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %s %+v\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, t)
	err := t.eachStub(func(name string, text []byte) error {
		fmt.Fprintf(h, "%s %d\n", name, len(text))
		h.Write(text)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:12], err
}

// eachStub calls f with every file of the stub. A name loses its last ".stub", without which it
// would be a Go file, or a module, of this repository.
func (t Tool) eachStub(f func(name string, text []byte) error) error {
	if t.Stub == "" {
		return nil
	}
	sub, err := fs.Sub(stubs, "stubs/"+t.Stub)
	if err != nil {
		return fmt.Errorf("find the stub %s: %w", t.Stub, err)
	}
	return fs.WalkDir(sub, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(sub, name)
		if err != nil {
			return err
		}
		return f(strings.TrimSuffix(name, ".stub"), text)
	})
}

// Source returns the folder of the published module, which the go command fetches if it is missing,
// and holds it to its checksum. Its errors are those of Ensure.
func (t Tool) Source(ctx context.Context) (string, error) {
	cmd := command(ctx, os.TempDir(), "mod", "download", "-json", t.Module+"@"+t.Version)
	out, err := cmd.Output()
	var answer struct{ Dir, Sum, Error string }
	if unreadable := json.Unmarshal(out, &answer); unreadable != nil {
		return "", fmt.Errorf("download %s: %w", t.Module, errors.Join(err, unreadable))
	}
	if answer.Error != "" {
		return "", &Unavailable{Tool: t, Reason: answer.Error}
	}
	if answer.Sum != t.Sum {
		return "", fmt.Errorf("download %s %s: its checksum is %s, not %s", t.Module, t.Version, answer.Sum, t.Sum)
	}
	return answer.Dir, nil
}

// build builds in a copy of the module, and puts the program into place whole.
func (t Tool) build(ctx context.Context, source, path string) error {
	work, err := os.MkdirTemp(filepath.Dir(path), "source-")
	if err != nil {
		return fmt.Errorf("make a folder to build %s: %w", t.Name, err)
	}
	defer os.RemoveAll(work)
	if err := t.copy(source, work); err != nil {
		return err
	}
	if len(t.Edits) > 0 {
		if out, err := command(ctx, work, append([]string{"mod", "edit"}, t.Edits...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("edit the go.mod of %s: %w\n%s", t.Name, err, out)
		}
	}
	mode := "-mod=readonly"
	if len(t.Edits) > 0 {
		mode = "-mod=mod"
	}
	program := filepath.Join(work, t.Name+".built")
	args := []string{"build", mode, "-p", "2", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, t.Package}
	if out, err := command(ctx, work, args...).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "403 Forbidden") || strings.Contains(string(out), "404 Not Found") {
			return &Unavailable{Tool: t, Reason: string(out)}
		}
		return fmt.Errorf("build %s: %w\n%s", t.Name, err, out)
	}
	if err := os.Rename(program, path); err != nil {
		return fmt.Errorf("put %s into place: %w", t.Name, err)
	}
	return nil
}

// copy copies the module, which nobody may write in the go command's own cache, and the stub.
func (t Tool) copy(source, work string) error {
	err := filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, name)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(work, rel), 0o755)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(work, rel), text, 0o644)
	})
	if err == nil {
		err = t.eachStub(func(name string, text []byte) error {
			to := filepath.Join(work, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			return os.WriteFile(to, text, 0o644)
		})
	}
	if err != nil {
		return fmt.Errorf("copy the module of %s: %w", t.Name, err)
	}
	return nil
}

// command is the go command at low priority, as this machine has it and nothing newer.
func command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	name := "go"
	if _, err := exec.LookPath("nice"); err == nil {
		name, args = "nice", append([]string{"-n", "10", "go"}, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "GOTOOLCHAIN=local")
	return cmd
}

// Unavailable says that a program cannot be built here.
type Unavailable struct {
	// Tool is what was wanted.
	Tool Tool
	// Reason is what the go command said.
	Reason string
}

// Error implements error.
func (e *Unavailable) Error() string {
	return fmt.Sprintf("%s %s is not to be had: %s", e.Tool.Module, e.Tool.Version, e.Reason)
}

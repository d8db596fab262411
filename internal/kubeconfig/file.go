package kubeconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"postern.dev/postern/internal/wholefile"
	"postern.dev/postern/internal/wire"
)

const (
	maxFile   = 16 << 20 // bytes; a thousand clusters with certificates are 4 MiB
	lockWait  = 5 * time.Second
	lockPause = 20 * time.Millisecond
)

// Files returns the kubeconfig files that kubectl reads, in its order: those of
// KUBECONFIG, or else the one in the home directory. There may be none.
func Files(getenv func(string) string) []string {
	var files []string
	for _, f := range filepath.SplitList(getenv("KUBECONFIG")) {
		if f != "" && !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	home := getenv("HOME")
	if home == "" {
		home = getenv("USERPROFILE")
	}
	if len(files) == 0 && home != "" {
		files = append(files, filepath.Join(home, ".kube", "config"))
	}
	return files
}

// Current returns the file to change: the first that exists, or else the first.
func Current(getenv func(string) string) (string, error) {
	files := Files(getenv)
	if len(files) == 0 {
		return "", wire.Fail(wire.LegClient, wire.CodeBadRequest, "it is not known where the kubeconfig is: neither KUBECONFIG nor HOME is set").
			WithHint("name a file with --output FILE")
	}
	if i := slices.IndexFunc(files, exists); i >= 0 {
		return files[i], nil
	}
	return files[0], nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Change lets f change the text of a kubeconfig file, which may not exist yet. It
// holds the lock that kubectl takes for its own changes, and puts the new file in
// place as a whole, with the mode of the old one; a new one is its owner's only.
// A symbolic link stays one.
func Change(ctx context.Context, path string, f func([]byte) ([]byte, error)) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fileFailure(path, err)
	}
	unlock, err := lock(ctx, path)
	if err != nil {
		return err
	}
	defer unlock()
	target, mode := path, fs.FileMode(0o600)
	var old []byte
	if real, err := filepath.EvalSymlinks(path); err == nil {
		info, err := os.Stat(real)
		if err != nil {
			return fileFailure(path, err)
		}
		if !info.Mode().IsRegular() || info.Size() > maxFile {
			return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s is no kubeconfig: it is no regular file, or too long", path)
		}
		if old, err = os.ReadFile(real); err != nil {
			return fileFailure(path, err)
		}
		target, mode = real, info.Mode().Perm()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fileFailure(path, err)
	}
	changed, err := f(old)
	if err != nil {
		if failure, ok := errors.AsType[*wire.Failure](err); ok {
			named := *failure
			named.Text = path + ": " + failure.Text
			return &named
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if old != nil && bytes.Equal(old, changed) {
		return nil
	}
	if err := wholefile.Replace(target, changed, mode); err != nil {
		return fileFailure(path, err)
	}
	return nil
}

// lock takes the lock of a kubeconfig file as kubectl does: a file beside it that only
// one can make. It is waited for, since kubectl holds it for a moment only.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	name := path + ".lock"
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			f.Close()
			return func() { _ = os.Remove(name) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fileFailure(path, err)
		}
		select {
		case <-ctx.Done():
			return nil, wire.Fail(wire.LegClient, wire.CodeTimeout, "another program is changing %s", path).WithCause(ctx.Err()).
				WithHint("if none is, it was killed while it did: remove %s", name)
		case <-time.After(lockPause):
		}
	}
}

func fileFailure(path string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return wire.Fail(wire.LegClient, wire.CodeBadRequest, "%s: %s", path, err).WithCause(err)
}

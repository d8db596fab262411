// Package wholefile writes files that are whole or not there at all, whatever ends the writing: a
// full disk, a signal, a power cut. A file is written beside its place, made durable, and then put
// there in one step.
package wholefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// prefix begins the names of files that are being written.
const prefix = ".postern-new-"

// Replace makes a file of b with the mode. One that is there already is replaced.
func Replace(name string, b []byte, mode fs.FileMode) error { return write(name, b, mode, true) }

// Create makes a file of b with the mode. One that is there already stays, and the error is
// fs.ErrExist.
func Create(name string, b []byte, mode fs.FileMode) error { return write(name, b, mode, false) }

func write(name string, b []byte, mode fs.FileMode, replace bool) error {
	f, err := New(name)
	if err != nil {
		return err
	}
	defer f.Discard()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(mode)); err != nil {
		return err
	}
	return f.Commit(replace)
}

// File is one that is being written, beside its place. Only its owner can read it, unless Chmod
// says otherwise. It is for one goroutine.
type File struct {
	*os.File
	name string
}

// New begins a file that Commit puts into its place, or Discard removes.
func New(name string) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(name), prefix+"*") // mode 0600
	if err != nil {
		return nil, err
	}
	return &File{f, name}, nil
}

// Commit closes the file and puts it into its place; it is durable when Commit returns. Unless
// replace is set, a file that is there already stays, and the error is fs.ErrExist.
func (f *File) Commit(replace bool) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	place := os.Rename
	if !replace {
		place = link
	}
	if err := place(f.Name(), f.name); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(f.name))
}

// Discard closes the file and removes what is not in its place. After Commit it does nothing that
// matters.
func (f *File) Discard() {
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// link puts a file into a place that is free. Where the file system has no links, somebody who
// takes the place at the same moment loses it.
func link(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, there := os.Lstat(to); !errors.Is(there, fs.ErrNotExist) {
		return err
	}
	return os.Rename(from, to)
}

// SyncDir makes the names in a directory durable, where the system can.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if runtime.GOOS == "windows" || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil // some systems cannot, and need not
	}
	return err
}

// IsLeftover reports whether a file is being written, or was when its writing was cut off.
func IsLeftover(name string) bool { return strings.HasPrefix(filepath.Base(name), prefix) }

// Tidy removes what writings that were cut off left in directories that nobody else writes to.
// Leftovers do no harm, so neither does a failure.
func Tidy(dirs ...string) {
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if IsLeftover(e.Name()) {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
	}
}

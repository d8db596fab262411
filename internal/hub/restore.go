package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"postern.dev/postern/internal/archive"
	"postern.dev/postern/internal/bus/embedded"
)

// restoreDir is where a restore puts everything together before it is in place.
// Its name is not that of a leftover: a directory with it is no empty one.
const restoreDir = ".postern-restore"

// RestoreOptions says how a backup is restored.
type RestoreOptions struct {
	// BusKeyFile is for a hub that keeps the key of its bus elsewhere; the backup
	// does not hold it, and it may be another one than before.
	BusKeyFile string
	Log        *slog.Logger
}

// Restore makes a hub's state directory of a backup. open returns it from its
// beginning, decrypted; it is read twice, and checked to its end before anything
// is touched. dir must not exist or be empty. The result is complete or no hub
// takes it: after a restore that was cut off, it can be done again.
func Restore(ctx context.Context, dir string, open func() (io.ReadCloser, error), o RestoreOptions) (archive.Header, error) {
	var need needs
	h, err := readBackup(open, need.note)
	if err != nil {
		return h, err
	}
	switch {
	case !need.state:
		return h, fmt.Errorf("%w: it does not hold a hub's state", archive.ErrCorrupt)
	case !need.busKey && o.BusKeyFile == "":
		return h, stateError(ErrStateOptions, dir, "the hub kept the key of its bus elsewhere: give one with --bus-key-file")
	}
	if _, err := readBusKeyFile(o.BusKeyFile); err != nil {
		return h, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return h, fileError(dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return h, err
	}
	defer func() { _ = lock.Close() }()
	if err := clearForRestore(dir); err != nil {
		return h, err
	}
	stage := filepath.Join(dir, restoreDir)
	if err := os.Mkdir(stage, 0o700); err != nil {
		return h, fileError(stage, err)
	}
	if err := stageBackup(ctx, stage, open, o); err != nil {
		return h, errors.Join(err, os.RemoveAll(stage))
	}
	return h, moveIntoPlace(dir, stage)
}

// readBackup reads an archive once.
func readBackup(open func() (io.ReadCloser, error), each func(name string, content []byte) error) (archive.Header, error) {
	r, err := open()
	if err != nil {
		return archive.Header{}, err
	}
	defer r.Close()
	return archive.Read(r, each)
}

// needs notes what a backup holds.
type needs struct{ state, busKey bool }

func (n *needs) note(name string, content []byte) error {
	if name != "state/"+stateFile {
		return nil
	}
	var r stateRecord
	if err := json.Unmarshal(content, &r); err != nil || r.Product != stateProduct || !r.Complete {
		return fmt.Errorf("%w: its %s is not a hub's", archive.ErrCorrupt, stateFile)
	}
	if r.Format != stateFormat {
		return fmt.Errorf("%w: its state has format %d, and this version knows %d", archive.ErrVersion, r.Format, stateFormat)
	}
	_, n.busKey = r.Files[r.busKeyFile()]
	n.state = true
	return nil
}

// clearForRestore makes sure that a directory is empty, but for what a restore left
// that was cut off.
func clearForRestore(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fileError(dir, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.Name() != "lost+found" {
			names = append(names, e.Name())
		}
	}
	again := slices.Contains(names, restoreDir) && !slices.Contains(names, stateFile)
	if len(names) > 0 && !again {
		return stateError(ErrStateTaken, dir, "it holds %q", names[0])
	}
	for _, name := range names { // it was empty when that restore began
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil { //nolint:gosec // the directory is the operator's choice
			return fileError(filepath.Join(dir, name), err)
		}
	}
	return nil
}

// stageBackup puts a whole state directory together.
func stageBackup(ctx context.Context, stage string, open func() (io.ReadCloser, error), o RestoreOptions) error {
	r := &restorer{ctx: ctx, stage: stage, options: o}
	_, err := readBackup(open, r.entry)
	if err == nil {
		err = r.endStream()
	}
	err = errors.Join(err, r.abort())
	if r.bus != nil {
		r.bus.Shutdown()
	}
	if r.state != nil {
		_ = r.state.Close()
	}
	if err != nil {
		return err
	}
	if r.bus == nil {
		return fmt.Errorf("%w: it holds nothing of the bus", archive.ErrCorrupt)
	}
	return syncTree(stage)
}

// restorer makes what the entries of an archive say.
type restorer struct {
	ctx     context.Context
	stage   string
	options RestoreOptions

	state  *State
	bus    *embedded.Server
	stream string
	feed   *io.PipeWriter // the content of stream; nil between streams
	done   chan error     // how its restore ended
}

func (r *restorer) entry(name string, content []byte) error {
	kind, rest, _ := strings.Cut(name, "/")
	if kind == "state" {
		file := filepath.Join(r.stage, filepath.FromSlash(rest))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fileError(file, err)
		}
		return writeFile(file, content)
	}
	stream, part, _ := strings.Cut(rest, "/")
	if part == "info.json" {
		if err := r.endStream(); err != nil {
			return err
		}
		return r.beginStream(stream, slices.Clone(content))
	}
	_, err := r.feed.Write(content)
	return err
}

// beginStream starts the bus, if that is not done, and restores a stream of what
// follows.
func (r *restorer) beginStream(stream string, info []byte) error {
	if r.bus == nil {
		var err error
		if r.state, err = OpenState(r.stage, StateOptions{BusKeyFile: r.options.BusKeyFile, Log: r.options.Log}); err != nil {
			return err
		}
		seeds, err := r.state.busSeeds()
		if err != nil {
			return err
		}
		if r.bus, err = embedded.Start(r.state.busConfig(r.options.Log), seeds); err != nil {
			return err
		}
	}
	out, in := io.Pipe()
	r.stream, r.feed, r.done = stream, in, make(chan error, 1)
	go func() { // ends with the pipe; endStream and abort wait for it
		err := r.bus.Restore(r.ctx, stream, info, out)
		_ = out.CloseWithError(err)
		r.done <- err
	}()
	return nil
}

// endStream waits until the stream that was begun is whole.
func (r *restorer) endStream() error {
	if r.feed == nil {
		return nil
	}
	_ = r.feed.Close() // never fails
	r.feed = nil
	return <-r.done
}

// abort gives up the stream that was begun, if one was, and returns how it ended.
func (r *restorer) abort() error {
	if r.feed == nil {
		return nil
	}
	_ = r.feed.CloseWithError(context.Canceled) // never fails
	r.feed = nil
	return <-r.done
}

// moveIntoPlace moves everything to where it belongs. state.json comes last: until
// then no hub takes the directory for its own.
func moveIntoPlace(dir, stage string) error {
	entries, err := os.ReadDir(stage)
	if err != nil {
		return fileError(stage, err)
	}
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int {
		return cmp.Compare(btoi(a.Name() == stateFile), btoi(b.Name() == stateFile))
	})
	for _, e := range entries {
		if e.Name() == stateFile {
			if err := syncDir(dir); err != nil {
				return err
			}
		}
		if err := os.Rename(filepath.Join(stage, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return fileError(filepath.Join(dir, e.Name()), err)
		}
	}
	if err := os.Remove(stage); err != nil {
		return fileError(stage, err)
	}
	return syncDir(dir)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// syncTree makes sure that a directory is on disk with all that is below it.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error { //nolint:gosec // we made it all
		if err != nil {
			return err
		}
		return syncDir(name)
	})
}

// syncDir makes sure that a directory's entries, or a file's content, are on disk.
func syncDir(name string) error {
	f, err := os.Open(name) //nolint:gosec // below the directory of the operator's choice
	if err != nil {
		return fileError(name, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fileError(name, err)
	}
	return nil
}

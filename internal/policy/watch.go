package policy

import (
	"bytes"
	"context"
	"time"
)

// pollEvery is how often a Watcher looks. A change has to be seen twice, so it is
// found within two of them, and half of a file that somebody is writing is not.
const pollEvery = 400 * time.Millisecond

// Watcher finds changes of a policy file. It reads the file again and again
// instead of asking the system for events: that works on every file system, and
// follows the symbolic links by which a mounted ConfigMap changes.
type Watcher struct {
	Path string

	// Read returns the file's bytes, at most MaxFile and one more; nil means to
	// read Path.
	Read func() ([]byte, error)

	applied []byte // what the last good version was read from
}

// Load reads the file for the first time. An error is a *FileError.
func (w *Watcher) Load() ([]Entry, error) {
	data, err := w.read()
	if err != nil {
		return nil, unreadable(w.Path, err)
	}
	entries, err := ParseFile(w.Path, data)
	if err != nil {
		return nil, err
	}
	w.applied = data
	return entries, nil
}

// Run calls apply with every good version of the file that differs from the one
// before, and reject once with the *FileError of each one that cannot be used. When
// the file is again what was last applied, apply is called with it too, so that a
// rejection does not outlive its cause. Run returns when ctx ends; it is for one
// goroutine, after Load.
func (w *Watcher) Run(ctx context.Context, apply func([]Entry), reject func(error)) {
	seen, last := look{data: w.applied}, look{data: w.applied}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := w.look()
		steady := now.equal(seen)
		seen = now
		if !steady || now.equal(last) {
			continue
		}
		last = now
		if now.err != nil {
			reject(now.err)
			continue
		}
		entries, err := ParseFile(w.Path, now.data)
		if err != nil {
			reject(err)
			continue
		}
		w.applied = now.data
		apply(entries)
	}
}

// look is what one reading of the file gave.
type look struct {
	data []byte
	err  *FileError
}

func (w *Watcher) look() look {
	data, err := w.read()
	if err != nil {
		return look{err: unreadable(w.Path, err)}
	}
	return look{data: data}
}

func (l look) equal(o look) bool {
	if l.err != nil || o.err != nil {
		return l.err != nil && o.err != nil && l.err.Error() == o.err.Error()
	}
	return bytes.Equal(l.data, o.data)
}

func (w *Watcher) read() ([]byte, error) {
	if w.Read != nil {
		return w.Read()
	}
	return readLimited(w.Path)
}

package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
)

// Rekey makes in the directory to a copy of the store of conf that is encrypted
// with another key. The store itself is opened with its own key and keeps what it
// has, so that a Rekey that was cut off is done again; what is at to is replaced.
// The copy is opened anew and compared in full before Rekey returns nil, and is on
// disk by then.
//
// The server can encrypt a store anew in place. It is not used, because it is
// neither safe against a crash nor complete: it gives up streams without messages,
// and all consumers.
//
// No other process may use the two directories.
func Rekey(ctx context.Context, conf Config, seeds []byte, to string, key []byte) error {
	if len(key) < keyLen {
		return fmt.Errorf("encryption key of the bus's store has %d bytes; at least %d are needed", len(key), keyLen)
	}
	if _, err := os.Stat(filepath.Join(conf.Dir, checkFile)); err != nil {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("make the bus's store: %w", err)
	}
	next := conf
	next.Dir, next.EncryptionKey = to, key
	var want map[string]streamState
	err := with(conf, seeds, func(from *Server) (err error) {
		if want, err = from.states(ctx); err != nil {
			return err
		}
		return with(next, seeds, func(s *Server) error {
			for name := range want {
				if err := s.copyStream(ctx, from, name); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := with(next, seeds, func(s *Server) error { return s.check(ctx, want) }); err != nil {
		return err
	}
	return syncTree(to)
}

// with runs f while a store is open.
func with(conf Config, seeds []byte, f func(*Server) error) error {
	s, err := Start(conf, seeds)
	if err != nil {
		return err
	}
	defer s.Shutdown()
	return f(s)
}

// copyStream makes a stream of another server's.
func (s *Server) copyStream(ctx context.Context, from *Server, name string) error {
	n, err := from.Snapshot(ctx, name)
	if err != nil {
		return err
	}
	out, in := io.Pipe()
	read := make(chan error, 1)
	go func() { // ends with the pipe
		_, err := n.WriteTo(in)
		_ = in.CloseWithError(err) // never fails
		read <- err
	}()
	err = s.Restore(ctx, name, n.Info, out)
	_ = out.CloseWithError(err)
	return errors.Join(err, <-read)
}

// check reads all messages of all streams, and compares the streams and their
// consumers with what is wanted.
func (s *Server) check(ctx context.Context, want map[string]streamState) error {
	got, err := s.states(ctx)
	if err != nil {
		return err
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("the copy of the bus's store has %v and not %v", got, want)
	}
	for name := range got {
		n, err := s.Snapshot(ctx, name)
		if err != nil {
			return err
		}
		if _, err := n.WriteTo(io.Discard); err != nil {
			return err
		}
	}
	return nil
}

// syncTree makes sure that a directory is on disk with all that is below it.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(name) //nolint:gosec // we made all that is there
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

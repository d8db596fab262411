package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// FileSink appends entries to a file, as JSON lines. The file may be moved away at
// any time, as logrotate does: the next batch begins a new one. A batch is safe on disk
// before it counts as delivered. The zero value with a Path is ready.
type FileSink struct {
	Path string

	f   *os.File
	end int64 // of what was written well
}

// Deliver implements Sink.
func (s *FileSink) Deliver(_ context.Context, b Batch) error {
	if err := s.open(); err != nil {
		return fmt.Errorf("open audit file: %w", err)
	}
	var out []byte
	for _, line := range b.Lines {
		out = append(append(out, line...), '\n')
	}
	_, err := s.f.Write(out)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		// What was written of it would be there twice, and its last line torn.
		err = errors.Join(err, s.f.Truncate(s.end), s.Close())
		return fmt.Errorf("write audit file: %w", err)
	}
	s.end += int64(len(out))
	return nil
}

// open opens the file at the path, unless that is the one that is open.
func (s *FileSink) open() error {
	if s.f != nil {
		mine, err := s.f.Stat()
		if err != nil {
			return err
		}
		there, err := os.Stat(s.Path)
		if err == nil && os.SameFile(mine, there) {
			s.end = mine.Size() // copytruncate makes it shorter
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(s.Path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if s.end, err = mend(f); err != nil {
		return errors.Join(err, f.Close())
	}
	s.f = f
	return nil
}

// mend takes away a line that a crash tore off, which comes again, and returns where
// the file ends.
func mend(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || end == 0 {
		return end, err
	}
	tail := make([]byte, min(end, MaxLine+1))
	if _, err := f.ReadAt(tail, end-int64(len(tail))); err != nil {
		return end, err
	}
	whole := end - int64(len(tail)) + int64(bytes.LastIndexByte(tail, '\n')) + 1
	if whole == end {
		return end, nil
	}
	if whole == end-int64(len(tail)) && whole > 0 {
		return end, errors.New("it does not end in a line of an audit log")
	}
	return whole, f.Truncate(whole)
}

// Close implements Sink.
func (s *FileSink) Close() error {
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

package api

import (
	"context"
	"io"

	"postern.dev/postern/internal/wire"
)

// PathBackup is where hub administrators get a backup of the hub.
const PathBackup = "/v1/backup"

// TypeBackup is the content type of a backup; see package archive.
const TypeBackup = "application/x-tar"

// Backup writes a backup of the hub to w. It holds every secret of the hub. When
// it was cut off, w holds the beginning; the archive itself tells that it is not
// whole.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	body, err := c.stream(ctx, PathBackup)
	if err != nil {
		return err
	}
	defer body.Close()
	out := &failingWriter{w: w}
	if _, err := io.Copy(out, body); out.err != nil {
		return out.err
	} else if err != nil {
		return wire.Fail(wire.LegHub, wire.CodeLost, "the backup was cut off: %s", err).WithCause(err).WithHint("see the hub's log")
	}
	return nil
}

// failingWriter tells errors of writing from those of reading.
type failingWriter struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (f *failingWriter) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	f.err = err
	return n, err
}

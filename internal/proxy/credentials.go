package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"postern.dev/postern/internal/wire"
)

// credentialsLook is how often a credentials file is looked at. A change counts once the
// file stays as it is for so long: it is not caught while somebody writes it.
const credentialsLook = time.Second

// badLinesTold is how many lines that cannot be used are named each time.
const badLinesTold = 10

// credentials keeps the users of an Access to what a file says.
type credentials struct {
	path string
	log  *slog.Logger

	seen    string // stamp of the file that is in use, or the last one that could not be used
	changed string // stamp of one that has just appeared
}

func newCredentials(path string, log *slog.Logger) *credentials {
	return &credentials{path: path, log: log}
}

// first reads the file at the start. One that is not there has nobody in it: whoever
// provides it may come later.
func (c *credentials) first() (*Users, error) {
	c.seen = c.stamp()
	users, bad, err := LoadUsers(c.path)
	c.warn(bad)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.log.Warn("the credentials file is not there: nobody has credentials until it is", "file", c.path)
		return ParseUsers("")
	case err != nil:
		return nil, err
	case users.size() == 0:
		c.log.Warn("the credentials file has no line that can be used: nobody has credentials", "file", c.path)
	}
	return users, nil
}

// warn tells of lines that are skipped.
func (c *credentials) warn(bad []error) {
	for i, err := range bad {
		if i == badLinesTold {
			c.log.Warn("further lines of the credentials file are skipped", "file", c.path, "lines", len(bad)-i)
			return
		}
		c.log.Warn("a line of the credentials file is skipped: it grants nothing", "file", c.path, "error", err)
	}
}

// run takes over what changes until ctx ends.
func (c *credentials) run(ctx context.Context, a *Access) {
	tick := time.NewTicker(credentialsLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.look(a)
		}
	}
}

// look takes over the lines that can be used of a file that has changed and stays so. One that
// cannot be read, or is gone, changes nothing.
func (c *credentials) look(a *Access) {
	stamp := c.stamp()
	if stamp == c.seen {
		c.changed = ""
		return
	}
	if stamp != c.changed {
		c.changed = stamp
		return
	}
	c.seen, c.changed = stamp, ""
	users, bad, err := LoadUsers(c.path)
	if err != nil {
		c.log.Error("the credentials read before stay in use: the file cannot be used", "file", c.path, "error", err)
		return
	}
	c.warn(bad)
	streams := a.replace(users)
	c.log.Info("the credentials have changed", "file", c.path, "lines", users.size(), "skipped", len(bad), "streams_ended", streams)
}

func (c *credentials) stamp() string {
	st, err := os.Stat(c.path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size(), st.Mode())
}

// current returns the users who have credentials now; nil if there is no file of them.
func (a *Access) current() *Users {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.users
}

// replace puts others in the place of the users, and ends the streams of those whose line
// is gone or another. It returns how many it ended.
func (a *Access) replace(users *Users) (ended int) {
	a.mu.Lock()
	users.adopt(a.users)
	a.users = users
	gone := make(map[*guestStream]*userEntry)
	for entry, streams := range a.live {
		if users.has(entry) {
			continue
		}
		for s := range streams {
			gone[s] = entry
		}
		delete(a.live, entry)
	}
	a.mu.Unlock()
	for s, entry := range gone {
		cut(s.Stream, entry.withdrawn())
	}
	return len(gone)
}

// lodge binds a stream to the line by which its client came: it ends with it. The line may
// be gone already.
func (a *Access) lodge(by *userEntry, stream Stream) (Stream, error) {
	s := &guestStream{Stream: stream}
	s.leave = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if delete(a.live[by], s); len(a.live[by]) == 0 {
			delete(a.live, by)
		}
	}
	a.mu.Lock()
	known := a.users.has(by)
	if known {
		if a.live[by] == nil {
			a.live[by] = make(map[*guestStream]struct{})
		}
		a.live[by][s] = struct{}{}
	}
	a.mu.Unlock()
	if !known {
		f := by.withdrawn()
		cut(stream, f)
		return nil, f
	}
	return s, nil
}

func (e *userEntry) withdrawn() *wire.Failure {
	return unauthenticated("the credentials of user %q were withdrawn", e.name)
}

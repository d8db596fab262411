package exchange

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

var errNotWanted = errors.New("the server does not want the body")

// upload is a request with a body, which a goroutine of its own sends: the answer may
// begin before it has ended. Methods of a nil upload do nothing; its request was sent.
type upload struct {
	io.ReadCloser // the request's body
	x             *exchange

	gate      chan struct{} // closed when it is known whether the body is wanted
	wanted    bool          // set before gate is closed
	waits     bool          // for gate; of the goroutine that sends
	open      sync.Once
	abandoned chan struct{} // closed when nobody waits for the rest
	drop      sync.Once

	own  error         // of the body itself; set before done is closed
	err  error         // of all; set before done is closed
	done chan struct{} // closed at the end
}

func newUpload(x *exchange) *upload {
	return &upload{ReadCloser: x.r.Body, x: x, gate: make(chan struct{}), waits: expects(x.r), abandoned: make(chan struct{}), done: make(chan struct{})}
}

// send sends the request.
func (u *upload) send() {
	r := *u.x.r
	r.Body, r.GetBody = u, nil
	u.err = u.x.write(&r) // it closes the body
	close(u.done)
	switch { // without an error the connection may be the next request's by now
	case u.err == nil, errors.Is(u.own, errNotWanted):
	case u.own != nil: // what was sent must not pass for all
		_ = u.x.conn.Close()
	default:
		_ = u.x.conn.SetReadDeadline(time.Now().Add(lateAnswer))
	}
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	if err := u.pass(); err != nil {
		u.own = err
		return 0, err
	}
	n, err := u.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		u.own = err
	}
	return n, err
}

// pass waits until the body may be sent.
func (u *upload) pass() error {
	if !u.waits {
		return nil
	}
	timer := time.NewTimer(u.x.client.cfg.ContinueTime)
	defer timer.Stop()
	select {
	case <-u.gate:
	case <-timer.C: // a server that knows nothing of it
		u.goOn(true)
	case <-u.abandoned:
		u.goOn(false)
	}
	<-u.gate
	u.waits = false
	if !u.wanted {
		return errNotWanted
	}
	return nil
}

// goOn tells whether the body is wanted. The first word counts.
func (u *upload) goOn(wanted bool) {
	if u == nil {
		return
	}
	u.open.Do(func() {
		u.wanted = wanted
		close(u.gate)
	})
}

// sent reports whether all of the request was sent. It waits for a moment.
func (u *upload) sent() bool {
	if u == nil {
		return true
	}
	timer := time.NewTimer(lateBody)
	defer timer.Stop()
	select {
	case <-u.done:
		return u.err == nil
	case <-timer.C:
		return false
	}
}

// abandon ends the wait for a word about the body.
func (u *upload) abandon() {
	if u != nil {
		u.drop.Do(func() { close(u.abandoned) })
	}
}

// failed returns why the body ended early, if it did so by itself.
func (u *upload) failed() error {
	select {
	case <-u.done:
		if !errors.Is(u.own, errNotWanted) && !errors.Is(u.own, http.ErrBodyReadAfterClose) {
			return u.own
		}
	default:
	}
	return nil
}

package copybuffer

import (
	"io"
	"net/http"
	"time"
)

const (
	// smallSize is what waits for the bytes of an answer that has been quiet.
	smallSize = 1 << 10

	// quickTime tells an answer of which much comes from one that is quiet.
	quickTime = time.Second
)

// Answer is an answer that comes bit by bit, such as a watch, and may be quiet for
// hours. It is followed in place of being copied by an httputil.ReverseProxy, which
// would hold a buffer meanwhile, and twice the stack.
type Answer struct {
	from      *http.Response
	asked     http.Header
	body      io.ReadCloser
	announced int
}

// Take takes the body out of an answer, from ModifyResponse of the ReverseProxy. Follow
// must come after it. The answer must not change the protocol, nor its request have a
// body, which would be closed too early. asked is the header of the request that is
// answered: it is emptied when the answer begins, for what follows may last for hours.
func Take(r *http.Response, asked http.Header) *Answer {
	a := &Answer{from: r, asked: asked, body: r.Body, announced: len(r.Trailer)}
	r.Body = http.NoBody
	return a
}

// Follow sends on what comes, each piece at once, and the trailer. Use it after the
// ReverseProxy has sent the header. With an error the answer is not whole.
func (a *Answer) Follow(w http.ResponseWriter, buffers *Pool) error {
	defer func() { _ = a.body.Close() }()
	if err := a.copy(w, http.NewResponseController(w), buffers); err != nil {
		return err
	}
	_ = a.body.Close() // now the trailer is there
	prefix := http.TrailerPrefix
	if len(a.from.Trailer) == a.announced {
		prefix = ""
	}
	for field, values := range a.from.Trailer {
		w.Header()[prefix+field] = append(w.Header()[prefix+field], values...)
	}
	return nil
}

func (a *Answer) copy(w io.Writer, control *http.ResponseController, buffers *Pool) error {
	if err := control.Flush(); err != nil {
		return err
	}
	clear(a.asked)
	a.asked, a.from.Header, a.from.Request = nil, nil, nil
	small := make([]byte, smallSize)
	buf := small
	defer func() {
		if len(buf) > smallSize {
			buffers.Put(buf)
		}
	}()
	for last := time.Now(); ; {
		n, err := a.body.Read(buf)
		now := time.Now()
		quick := now.Sub(last) < quickTime
		last = now
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if err := control.Flush(); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case len(buf) == smallSize && n == smallSize && quick:
			buf = buffers.Get()
		case len(buf) > smallSize && !quick:
			buffers.Put(buf)
			buf = small
		}
	}
}

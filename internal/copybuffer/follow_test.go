package copybuffer

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// pieces is a body that comes piece by piece, with a pause before each.
type pieces struct {
	pause  time.Duration
	all    [][]byte
	end    error
	sizes  []int // of the buffers that it was read with
	closed bool
}

// Read implements io.Reader.
func (p *pieces) Read(b []byte) (int, error) {
	p.sizes = append(p.sizes, len(b))
	if len(p.all) == 0 {
		return 0, p.end
	}
	time.Sleep(p.pause)
	n := copy(b, p.all[0])
	if p.all[0] = p.all[0][n:]; len(p.all[0]) == 0 {
		p.all = p.all[1:]
	}
	return n, nil
}

// Close implements io.Closer.
func (p *pieces) Close() error { p.closed = true; return nil }

// flushed notes what was written when it was flushed.
type flushed struct {
	*httptest.ResponseRecorder
	at []int
}

// Flush implements http.Flusher.
func (f *flushed) Flush() {
	f.at = append(f.at, f.Body.Len())
	f.ResponseRecorder.Flush()
}

func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		big := bytes.Repeat([]byte("x"), 3*smallSize)
		body := &pieces{all: [][]byte{[]byte("one"), big, big, []byte("two")}, end: io.EOF}
		r := &http.Response{Body: body, Request: &http.Request{}, Trailer: http.Header{"Sum": nil}}
		asked := http.Header{"Authorization": {"Bearer x"}}
		a := Take(r, asked)
		if r.Body != http.NoBody {
			t.Error("the body is still there")
		}
		r.Trailer.Set("Sum", "42")
		w := &flushed{ResponseRecorder: httptest.NewRecorder()}
		if err := a.Follow(w, New(4<<10)); err != nil {
			t.Fatal(err)
		}
		if got, want := w.Body.String(), "one"+string(big)+string(big)+"two"; got != want {
			t.Errorf("got %d bytes, want %d", len(got), len(want))
		}
		if len(w.at) < 5 || w.at[0] != 0 || w.at[1] != 3 || w.at[len(w.at)-1] != w.Body.Len() {
			t.Errorf("flushed at %v", w.at)
		}
		if len(asked) > 0 || r.Request != nil {
			t.Error("the request is still remembered")
		}
		if w.Header().Get("Sum") != "42" || !body.closed {
			t.Errorf("trailer %v, closed %v", w.Header(), body.closed)
		}
		if last := body.sizes[len(body.sizes)-1]; last != 4<<10 {
			t.Errorf("it ends with a buffer of %d bytes, though much comes", last)
		}

		slow := &pieces{pause: time.Minute, all: [][]byte{big, []byte("late")}, end: errors.New("broken")}
		b := Take(&http.Response{Body: slow}, nil)
		b.from.Trailer = http.Header{"Sum": {"43"}}
		w = &flushed{ResponseRecorder: httptest.NewRecorder()}
		if err := b.Follow(w, New(4<<10)); err != slow.end { //nolint:errorlint // it is passed as it is
			t.Errorf("ends with %v", err)
		}
		for _, n := range slow.sizes {
			if n != smallSize {
				t.Errorf("a quiet answer is read with %d bytes", n)
			}
		}
		if len(w.Header()[http.TrailerPrefix+"Sum"]) != 0 {
			t.Error("a broken answer has a trailer")
		}
	})
}

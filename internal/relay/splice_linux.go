package relay

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spliceLen is the most that one splice(2) moves, and the size asked for each
// kernel pipe.
const spliceLen = 512 << 10

// splicer moves bytes between sockets within the kernel (splice(2)). Unlike
// io.Copy it holds a kernel pipe only while bytes are under way, so that idle pipes
// cost two descriptors and not six. Safe for concurrent use.
type splicer struct {
	mu   sync.Mutex
	free []kernelPipe
}

// maxFreePipes bounds the kernel pipes that wait for their next use.
const maxFreePipes = 64

type kernelPipe struct{ r, w int }

func (s *splicer) get() (kernelPipe, error) {
	s.mu.Lock()
	if n := len(s.free); n > 0 {
		p := s.free[n-1]
		s.free = s.free[:n-1]
		s.mu.Unlock()
		return p, nil
	}
	s.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return kernelPipe{}, os.NewSyscallError("pipe2", err)
	}
	// A larger pipe saves calls; where the user's limit is reached, the default does.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, spliceLen)
	return kernelPipe{r: fds[0], w: fds[1]}, nil
}

// put takes back an empty pipe.
func (s *splicer) put(p kernelPipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) < maxFreePipes {
		s.free = append(s.free, p)
		return
	}
	p.close()
}

// close closes the pipes that are not in use.
func (s *splicer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.free {
		p.close()
	}
	s.free = nil
}

func (p kernelPipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// copy moves bytes from src to dst until src ends (nil) or either fails, and adds
// what reached dst to those of the pair as it goes, which may hold them up.
func (s *splicer) copy(dst, src net.Conn, p *pair) error {
	d, dok := dst.(*net.TCPConn)
	c, cok := src.(*net.TCPConn)
	if !dok || !cok {
		return copyPlain(dst, src, p)
	}
	dstRaw, err := d.SyscallConn()
	if err != nil {
		return err
	}
	srcRaw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	t := transfer{s: s, pace: pace{pair: p}}
	t.in, t.out = t.fill, t.drain
	for {
		if err := t.next(srcRaw); err != nil {
			return err
		}
		if t.held == 0 {
			return nil
		}
		for t.held > 0 && t.err == nil {
			before := t.held
			err := dstRaw.Write(t.out)
			p.bytes.Add(int64(before - t.held))
			if err != nil && t.err == nil {
				t.err = err
			}
		}
		if t.err != nil {
			t.pipe.close() // it still holds bytes
			return t.err
		}
		s.put(t.pipe)
	}
}

// transfer is the state of one direction between the calls of the runtime.
type transfer struct {
	s       *splicer
	pace    pace
	most    int  // that fill takes
	look    bool // fill is only to look how much there is
	ready   int  // that fill saw
	pipe    kernelPipe
	held    int // bytes in pipe
	err     error
	in, out func(fd uintptr) bool
}

// next takes bytes from the source: none at its end. Where there is a limit, it
// waits before it takes them, so that those who wait hold no kernel pipe.
func (t *transfer) next(src syscall.RawConn) error {
	t.most, t.look, t.ready = spliceLen, t.pace.limited(), 0
	if t.look {
		t.most = t.pace.pair.use.Chunk(spliceLen)
	}
	if err := src.Read(t.in); err != nil {
		return err
	}
	if t.ready > 0 {
		if err := t.pace.wait(t.ready); err != nil {
			return err
		}
		t.most, t.look = t.ready, false
		if err := src.Read(t.in); err != nil {
			return err
		}
	} else if t.held > 0 && t.pace.limited() { // it came between the look and the taking, or the limit did
		if err := t.pace.wait(t.held); err != nil {
			t.pipe.close()
			return err
		}
	}
	return t.err
}

// fill is called when the source may be readable.
func (t *transfer) fill(fd uintptr) bool {
	if t.look {
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil && n > 0 {
			t.ready = min(n, t.most)
			return true
		}
	}
	if t.pipe, t.err = t.s.get(); t.err != nil {
		return true
	}
	n, err := splice(int(fd), t.pipe.w, t.most)
	if n > 0 {
		t.held = n
		return true
	}
	t.s.put(t.pipe)
	if err == unix.EAGAIN {
		return false
	}
	t.held, t.err = 0, err
	return true
}

// drain is called when the destination may be writable.
func (t *transfer) drain(fd uintptr) bool {
	for t.held > 0 {
		n, err := splice(t.pipe.r, int(fd), t.held)
		switch {
		case err == unix.EAGAIN:
			return false
		case err != nil:
			t.err = err
			return true
		case n == 0:
			t.err = io.ErrUnexpectedEOF
			return true
		}
		t.held -= n
	}
	return true
}

func splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case err == syscall.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, err
		case err != nil:
			return 0, os.NewSyscallError("splice", err)
		}
		return int(m), nil
	}
}

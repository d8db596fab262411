package archive

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"time"
)

// Writer writes an archive. Close completes it; without that it counts as cut off.
type Writer struct {
	tar     *tar.Writer
	time    time.Time
	digest  digest
	entries int
}

// NewWriter begins an archive with h, whose Product and Format it sets.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Product, h.Format, h.Created = Product, Format, h.Created.UTC().Truncate(time.Second)
	a := &Writer{tar: tar.NewWriter(w), time: h.Created, digest: newDigest()}
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	return a, a.write(headerName, b)
}

// Add writes an entry of at most MaxEntry bytes.
func (a *Writer) Add(name string, content []byte) error {
	if !entryName.MatchString(name) || len(content) > MaxEntry {
		return fmt.Errorf("write backup: %.200q with %d bytes cannot be an entry", name, len(content))
	}
	return a.write(name, content)
}

func (a *Writer) write(name string, content []byte) error {
	a.entries++
	a.digest.add(name, content)
	err := a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600, ModTime: a.time, Format: tar.FormatUSTAR,
	})
	if err == nil {
		_, err = a.tar.Write(content)
	}
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

// Parts returns a writer that makes entries of what is written to it, in order. Its
// Close writes the last one.
func (a *Writer) Parts(name func(n int) string) io.WriteCloser {
	return &parts{archive: a, name: name, buf: make([]byte, 0, MaxEntry)}
}

type parts struct {
	archive *Writer
	name    func(n int) string
	buf     []byte
	n       int
}

// Write implements io.Writer.
func (p *parts) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		n := min(len(b), MaxEntry-len(p.buf))
		p.buf, b = append(p.buf, b[:n]...), b[n:]
		if len(p.buf) == MaxEntry {
			if err := p.Close(); err != nil {
				return total - len(b), err
			}
		}
	}
	return total, nil
}

// Close implements io.Closer.
func (p *parts) Close() error {
	if len(p.buf) == 0 {
		return nil
	}
	err := p.archive.Add(p.name(p.n), p.buf)
	p.n, p.buf = p.n+1, p.buf[:0]
	return err
}

// Close completes the archive. It does not close what the archive is written to.
func (a *Writer) Close() error {
	b, err := json.Marshal(end{Entries: a.entries, SHA256: a.digest.text()})
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	if err := a.write(endName, b); err != nil {
		return err
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	return nil
}

// digest is the SHA-256 over entries: the lengths of name and content, eight bytes
// each and big-endian, then both.
type digest struct{ hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

func (d digest) add(name string, content []byte) {
	var sizes [16]byte
	binary.BigEndian.PutUint64(sizes[:], uint64(len(name)))
	binary.BigEndian.PutUint64(sizes[8:], uint64(len(content)))
	d.Write(sizes[:])
	d.Write([]byte(name))
	d.Write(content)
}

func (d digest) text() string { return hex.EncodeToString(d.Sum(nil)) }

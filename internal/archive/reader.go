package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Read reads an archive to its end and calls each for every entry between header
// and end, in order; the content is valid during the call. What each got is to be
// believed only after Read has returned nil. Errors are one of ErrForeign,
// ErrVersion, ErrTruncated and ErrCorrupt with details, or those of each.
func Read(r io.Reader, each func(name string, content []byte) error) (Header, error) {
	a := &reader{tar: tar.NewReader(r), digest: newDigest(), seen: make(map[string]bool)}
	h, err := a.header()
	if err != nil {
		return Header{}, err
	}
	for {
		name, content, err := a.next()
		if err != nil {
			return h, err
		}
		if name == endName {
			if err := a.end(content); err != nil {
				return h, err
			}
			return h, trailing(r)
		}
		if err := a.admit(name, content); err != nil {
			return h, err
		}
		if err := each(name, content); err != nil {
			return h, err
		}
	}
}

// Verify reads an archive to its end and returns what it is of.
func Verify(r io.Reader) (Header, error) {
	return Read(r, func(string, []byte) error { return nil })
}

type reader struct {
	tar     *tar.Reader
	digest  digest
	entries int
	seen    map[string]bool // state files, and the first names of streams
	last    string
	buf     bytes.Buffer
}

// header reads the first entry.
func (a *reader) header() (Header, error) {
	name, content, err := a.next()
	if err != nil {
		if errors.Is(err, ErrCorrupt) && !errors.Is(err, errSealBroken) {
			return Header{}, fmt.Errorf("%w: it does not begin as one", ErrForeign)
		}
		return Header{}, err
	}
	var h Header
	if name != headerName || len(content) > maxHeader || json.Unmarshal(content, &h) != nil || h.Product != Product {
		return Header{}, fmt.Errorf("%w: it does not begin as one", ErrForeign)
	}
	if h.Format > Format {
		return h, fmt.Errorf("%w: its format is %d, made by %.100q, and this version knows %d", ErrVersion, h.Format, h.Version, Format)
	}
	if h.Format < 1 {
		return h, fmt.Errorf("%w: its format is %d", ErrForeign, h.Format)
	}
	a.digest.add(name, content)
	a.entries++
	return h, nil
}

// next returns the next entry.
func (a *reader) next() (string, []byte, error) {
	h, err := a.tar.Next()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		if a.entries == 0 {
			return "", nil, fmt.Errorf("%w: it is empty or cut off at its beginning", ErrForeign)
		}
		return "", nil, fmt.Errorf("%w after %d entries", ErrTruncated, a.entries)
	case errors.Is(err, tar.ErrHeader):
		return "", nil, fmt.Errorf("%w after %d entries: %w", ErrCorrupt, a.entries, err)
	case err != nil:
		return "", nil, readError(err)
	case h.Typeflag != tar.TypeReg || h.Format&tar.FormatUSTAR == 0 || len(h.PAXRecords) > 0:
		return "", nil, fmt.Errorf("%w: entry %d is not a plain file", ErrCorrupt, a.entries)
	case h.Size > MaxEntry || a.entries > maxEntries:
		return "", nil, fmt.Errorf("%w: entry %d has %d bytes", ErrCorrupt, a.entries, h.Size)
	}
	a.buf.Reset()
	if _, err := a.buf.ReadFrom(a.tar); errors.Is(err, io.ErrUnexpectedEOF) {
		return "", nil, fmt.Errorf("%w in entry %d", ErrTruncated, a.entries)
	} else if err != nil {
		return "", nil, readError(err)
	}
	return h.Name, a.buf.Bytes(), nil
}

// admit checks the name of an entry and counts it in.
func (a *reader) admit(name string, content []byte) error {
	if !entryName.MatchString(name) {
		return fmt.Errorf("%w: an entry is called %.100q", ErrCorrupt, name)
	}
	// In order, nothing can be there twice: state first, and the streams' parts after
	// their info.
	stream, part := splitBus(name)
	before, beforePart := splitBus(a.last)
	switch {
	case stream == "" && (before != "" || a.seen[name]),
		part == 0 && a.seen["bus/"+stream],
		part > 0 && (stream != before || part != beforePart+1):
		return fmt.Errorf("%w: entry %.100q is out of order", ErrCorrupt, name)
	case stream == "":
		a.seen[name] = true
	default:
		a.seen["bus/"+stream] = true
	}
	a.last = name
	a.digest.add(name, content)
	a.entries++
	return nil
}

// end checks the last entry against what came before.
func (a *reader) end(content []byte) error {
	var e end
	if json.Unmarshal(content, &e) != nil || e.Entries != a.entries || e.SHA256 != a.digest.text() {
		return fmt.Errorf("%w: its checksum does not fit what it holds", ErrCorrupt)
	}
	switch _, err := a.tar.Next(); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return ErrTruncated
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%w: something follows its end", ErrCorrupt)
	default:
		return nil
	}
}

// trailing makes sure that nothing but padding follows; it also makes an age file
// prove its last bytes.
func trailing(r io.Reader) error {
	b := make([]byte, 512)
	for total := 0; total <= MaxEntry; {
		n, err := r.Read(b)
		total += n
		if len(bytes.Trim(b[:n], "\x00")) > 0 {
			break
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError(err)
		}
	}
	return fmt.Errorf("%w: something follows its end", ErrCorrupt)
}

// splitBus takes the name of a stream's entry apart: 0 is its info, and its parts
// count from 1. The stream is empty for other entries.
func splitBus(name string) (stream string, part int) {
	rest, ok := strings.CutPrefix(name, "bus/")
	if !ok {
		return "", 0
	}
	stream, file, _ := strings.Cut(rest, "/")
	if n, err := strconv.Atoi(file); err == nil {
		part = n + 1
	}
	return stream, part
}

// readError tells what the layer below said. An age file that was changed or cut
// off is found out there.
func readError(err error) error {
	if errors.Is(err, errSealBroken) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return fmt.Errorf("read backup: %w", err)
}

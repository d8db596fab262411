package orders

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"postern.dev/postern/internal/access"
)

// maxPacked bounds the lists of grants that a Packer remembers.
const maxPacked = 64

// Packer seals documents for many agents. Hundreds of grants take milliseconds to pack,
// and most agents of an organization have the same: so they are packed once for all whose
// documents hold the same slice. It is not safe for concurrent use.
type Packer struct {
	key    Key
	packed map[list]packed
	zip    *gzip.Writer
}

// list is which slice of grants it is.
type list struct {
	first *access.Grant
	n     int
}

// packed is the end of a document, from its grants on.
type packed struct {
	sum  [sha256.Size]byte // of the text
	gzip []byte            // a member of its own: members that follow each other are one text (RFC 1952 §2.2)
	err  error
}

// NewPacker returns a Packer that signs with the key.
func (k Key) NewPacker() *Packer { return &Packer{key: k, packed: make(map[list]packed)} }

// Sum returns what differs for documents that differ in anything but their version.
func (p *Packer) Sum(d Document) ([sha256.Size]byte, error) {
	tail := p.tail(d.Access)
	d.Version = 0
	head, err := p.head(d)
	if err := errors.Join(err, tail.err); err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(append(tail.sum[:], head...)), nil
}

// Seal is Key.Seal.
func (p *Packer) Seal(d Document) ([]byte, error) {
	tail := p.tail(d.Access)
	head, err := p.head(d)
	if err := errors.Join(err, tail.err); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Write(make([]byte, ed25519.SignatureSize))
	if err := p.compress(&b, head); err != nil {
		return nil, err
	}
	b.Write(tail.gzip)
	if b.Len() > MaxMessage {
		return nil, fmt.Errorf("orders for agent %s have %d bytes; at most %d can be sent", d.Agent, b.Len(), MaxMessage)
	}
	message := b.Bytes()
	copy(message, ed25519.Sign(p.key.private, append([]byte(context), message[ed25519.SignatureSize:]...)))
	return message, nil
}

// head returns a document up to its grants, which come last.
func (p *Packer) head(d Document) ([]byte, error) {
	text, err := encode(struct {
		Organization string            `json:"organization"`
		Agent        string            `json:"agent"`
		Version      uint64            `json:"version"`
		Labels       map[string]string `json:"labels,omitempty"`
		Limits       json.RawMessage   `json:"limits,omitempty"`
	}{d.Organization, d.Agent, d.Version, d.Labels, d.Limits})
	if err != nil {
		return nil, err
	}
	return append(bytes.TrimSuffix(text, []byte("}")), `,"access":`...), nil
}

// tail returns the rest of a document.
func (p *Packer) tail(grants []access.Grant) packed {
	var key list
	if len(grants) > 0 {
		key = list{&grants[0], len(grants)}
	} else {
		grants = []access.Grant{} // a list in JSON, too
	}
	if one, ok := p.packed[key]; ok {
		return one
	}
	var one packed
	text, err := encode(grants)
	if one.err = err; err == nil {
		text = append(text, '}')
		one.sum = sha256.Sum256(text)
		var b bytes.Buffer
		one.err = p.compress(&b, text)
		one.gzip = b.Bytes()
	}
	if len(p.packed) >= maxPacked {
		clear(p.packed)
	}
	p.packed[key] = one
	return one
}

func (p *Packer) compress(b *bytes.Buffer, text []byte) (err error) {
	if p.zip == nil {
		if p.zip, err = gzip.NewWriterLevel(b, gzip.BestSpeed); err != nil {
			return err
		}
	} else {
		p.zip.Reset(b)
	}
	_, err = p.zip.Write(text)
	if err := errors.Join(err, p.zip.Close()); err != nil {
		return fmt.Errorf("pack orders: %w", err)
	}
	return nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("pack orders: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// certName is the name in the references' certificate.
const certName = "bench.test"

// bench owns the folder, the target and every process.
type bench struct {
	opts     options
	self     string // this executable, to start roles
	binary   string // the postern executable
	dir      string
	cert     string // PEM file of the references
	apiCert  string // PEM file of the API server
	apiCA    string // PEM file of who signed it
	target   *process
	addr     string // of the target
	children int
	nextPort int                 // where freeAddr goes on
	worlds   map[worldKey]*world // started so far, kept for all rounds
}

// worldKey names a set of processes that is started once and used by every
// figure on that path.
type worldKey struct {
	kind string
	path path
}

// path is the imitated network between the private side and the hub; for the
// raw path, between client and target. The zero value is loopback as it is.
type path struct {
	delay  time.Duration // one way
	rate   int64         // bytes per second
	shared bool          // one rate for all connections
}

// world is a running set of processes through which the target can be reached.
type world struct {
	procs     []*process // those whose processor time and memory count
	others    []*process // links
	entrances map[string]dialer
	api       *site // the Kubernetes API, in worlds that have one
}

// dialer opens a connection to the target.
type dialer func(ctx context.Context) (*net.TCPConn, error)

func (w *world) stop() {
	for _, p := range slices.Concat(w.procs, w.others) {
		p.stop()
	}
}

// tail returns the last log lines of all processes of the world.
func (w *world) tail() string {
	var s strings.Builder
	for _, p := range slices.Concat(w.procs, w.others) {
		s.WriteString(p.tail())
	}
	return s.String()
}

func newBench(_ context.Context, o options) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "postern-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{opts: o, self: self, dir: dir, binary: o.binary, worlds: make(map[worldKey]*world)}
	var addrs []string
	if b.cert, err = writeCertificate(dir); err == nil {
		b.apiCert, b.apiCA, err = writeSigned(dir)
	}
	if err == nil {
		b.target, addrs, err = b.role("target", "target")
	}
	if err != nil {
		b.close()
		return nil, err
	}
	b.addr = addrs[0]
	return b, nil
}

func (b *bench) close() {
	for _, w := range b.worlds {
		w.stop()
	}
	if b.target != nil {
		b.target.stop()
	}
	if b.opts.keep {
		progress("logs are in %s", b.dir)
		return
	}
	_ = os.RemoveAll(b.dir)
}

// prepare builds the postern executable when a contender needs it.
func (b *bench) prepare(ctx context.Context, cons []contender) error {
	if b.binary != "" || !slices.ContainsFunc(cons, func(c contender) bool { return c.ours }) {
		return nil
	}
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "postern.dev/postern").Output()
	if err != nil {
		return errors.New("find the checkout: run the bench from its own folder, or give -postern")
	}
	b.binary = filepath.Join(b.dir, "postern")
	progress("building postern")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.binary, "./cmd/postern")
	cmd.Dir = string(root[:len(root)-1])
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build postern: %w\n%s", err, out)
	}
	return nil
}

// world returns the running world of a kind on a path, starting it if need be.
func (b *bench) world(ctx context.Context, kind string, p path) (*world, error) {
	key := worldKey{kind, p}
	if w := b.worlds[key]; w != nil {
		return w, nil
	}
	w, err := b.newWorld(ctx, kind, p)
	if err == nil {
		b.worlds[key] = w
	}
	return w, err
}

// newWorld starts a world of its own and waits until every entrance of it works.
func (b *bench) newWorld(ctx context.Context, kind string, p path) (*world, error) {
	w := &world{entrances: make(map[string]dialer)}
	err := builders[kind](ctx, b, w, p)
	for name, dial := range w.entrances {
		if err == nil {
			if err = waitUntilOpen(ctx, dial); err != nil {
				err = fmt.Errorf("entrance %s: %w", name, err)
			}
		}
	}
	if err != nil {
		err = fmt.Errorf("start %s: %w%s", kind, err, w.tail())
		w.stop()
		return nil, err
	}
	return w, nil
}

// dropWorlds ends the worlds that do not run on plain loopback: their processes
// would cost the following figures a little.
func (b *bench) dropWorlds(p path) {
	for key, w := range b.worlds {
		if key.path == p {
			w.stop()
			delete(b.worlds, key)
		}
	}
}

// waitUntilOpen tries for some time until one byte has gone to the target and
// back.
func waitUntilOpen(ctx context.Context, dial dialer) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := dial(ctx)
		if err == nil {
			err = exchangeByte(c)
			_ = c.Close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no way to the target: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// link puts a link before addr when the path asks for one.
func (b *bench) link(w *world, p path, addr string) (string, error) {
	if p == (path{}) {
		return addr, nil
	}
	proc, addrs, err := b.role("link", "link", "-to", addr, "-delay", p.delay.String(),
		"-rate", fmt.Sprint(p.rate), fmt.Sprintf("-shared=%v", p.shared))
	if err != nil {
		return "", err
	}
	w.others = append(w.others, proc)
	return addrs[0], nil
}

// add starts a role whose cost counts and returns its addresses.
func (b *bench) add(w *world, name, role string, args ...string) ([]string, error) {
	p, addrs, err := b.role(name, role, args...)
	if err != nil {
		return nil, err
	}
	w.procs = append(w.procs, p)
	return addrs, nil
}

// writeCertificate makes the references' certificate and key.
func writeCertificate(dir string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	template := certTemplate(1)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	return writePEM(dir, "references.pem", der, key)
}

// writeSigned makes the API server's certificate and key, and the certificate of the
// authority that signed it: as in a real cluster, so that clients verify as much.
func writeSigned(dir string) (file, authority string, err error) {
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return "", "", err
		}
	}
	ca, leaf := certTemplate(2), certTemplate(3)
	ca.Subject.CommonName, leaf.IsCA = "authority", false
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, keys[0].Public(), keys[0])
	if err != nil {
		return "", "", err
	}
	signed, err := x509.CreateCertificate(rand.Reader, leaf, ca, keys[1].Public(), keys[0])
	if err != nil {
		return "", "", err
	}
	if authority, err = writePEM(dir, "authority.pem", der, nil); err != nil {
		return "", "", err
	}
	file, err = writePEM(dir, "api.pem", signed, keys[1])
	return file, authority, err
}

func certTemplate(serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: certName}, DNSNames: []string{certName}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
}

// writePEM writes a certificate, and its key if it is not nil.
func writePEM(dir, name string, der []byte, key *ecdsa.PrivateKey) (string, error) {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if key != nil {
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return "", err
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	}
	file := filepath.Join(dir, name)
	return file, os.WriteFile(file, text, 0o600)
}

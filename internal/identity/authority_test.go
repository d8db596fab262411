package identity_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern.dev/postern/internal/identity"
)

var now = time.Now()

func newAuthority(t *testing.T, domain string) *identity.Authority {
	t.Helper()
	a, err := identity.NewAuthority(domain, now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func agentID(domain, org, name string) identity.ID {
	return identity.ID{TrustDomain: domain, Organization: org, Role: identity.RoleAgent, Name: name, Replica: "r1"}
}

// issue makes credentials for id that end ttl after at.
func issue(t *testing.T, a *identity.Authority, id identity.ID, ttl time.Duration, at time.Time) *identity.Credentials {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.IssueParty(id, key.Public(), identity.Holder{}, ttl, at)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := identity.NewCredentials(chain, key, a.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

func TestAuthorityRoundTrip(t *testing.T) {
	a := newAuthority(t, "a.test")
	key, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.LoadAuthority(a.CertificatePEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	if b.TrustDomain() != "a.test" || b.Pin() != a.Pin() || !bytes.Equal(b.CertificatePEM(), a.CertificatePEM()) {
		t.Errorf("loaded authority differs: %s %s", b.TrustDomain(), b.Pin())
	}
	if pin, err := identity.ParsePin(strings.ToUpper(a.Pin())); err != nil || pin != a.Pin() {
		t.Errorf("ParsePin = %q, %v", pin, err)
	}
}

func TestLoadAuthorityRefuses(t *testing.T) {
	a, other := newAuthority(t, "a.test"), newAuthority(t, "a.test")
	key, _ := a.KeyPEM()
	otherKey, _ := other.KeyPEM()
	leafKey, _ := identity.NewKey()
	leaf, err := a.IssueParty(agentID("a.test", "acme", "edge"), leafKey.Public(), identity.Holder{}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cert, key []byte
		want      string
	}{
		"empty":         {nil, key, "not a PEM block"},
		"foreign key":   {a.CertificatePEM(), otherKey, "does not belong"},
		"leaf":          {leaf, key, "may not sign"},
		"truncated key": {a.CertificatePEM(), key[:len(key)/2], "private key"},
		"key as cert":   {key, key, "not a PEM block"},
	} {
		if _, err := identity.LoadAuthority(tc.cert, tc.key); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	a := newAuthority(t, "a.test")
	key, _ := identity.NewKey()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := agentID("a.test", "acme", "edge")
	for name, f := range map[string]func() error{
		"trust domain": func() error {
			_, err := a.IssueParty(agentID("b.test", "acme", "edge"), key.Public(), identity.Holder{}, 1, now)
			return err
		},
		"name": func() error {
			_, err := a.IssueParty(agentID("a.test", "acme", "Edge"), key.Public(), identity.Holder{}, 1, now)
			return err
		},
		"slash": func() error {
			_, err := a.IssueParty(agentID("a.test", "acme/agent", "x"), key.Public(), identity.Holder{}, 1, now)
			return err
		},
		"hub": func() error {
			_, err := a.IssueParty(identity.ID{TrustDomain: "a.test", Role: identity.RoleHub, Name: "hub"}, key.Public(), identity.Holder{}, 1, now)
			return err
		},
		"life":      func() error { _, err := a.IssueParty(good, key.Public(), identity.Holder{}, 0, now); return err },
		"weak key":  func() error { _, err := a.IssueParty(good, weak.Public(), identity.Holder{}, 1, now); return err },
		"other key": func() error { _, err := a.IssueParty(good, "key", identity.Holder{}, 1, now); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestIssueServer(t *testing.T) {
	a := newAuthority(t, "a.test")
	cert, err := a.IssueServer("hub-1", []string{"hub.example", "127.0.0.1", "::1"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"hub.example", "127.0.0.1", "::1"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	id, err := identity.CertificateID(cert.Leaf)
	if want := (identity.ID{TrustDomain: "a.test", Role: identity.RoleHub, Name: "hub-1"}); err != nil || id != want {
		t.Errorf("ID = %v, %v", id, err)
	}
}

func TestVerifyPeer(t *testing.T) {
	a, b := newAuthority(t, "a.test"), newAuthority(t, "b.test")
	id := agentID("a.test", "acme", "edge")
	leaf := issue(t, a, id, time.Hour, now).Certificate.Leaf
	// An authority with b's key that claims a leaf in a.test: the pool trusts
	// both authorities, so only the trust domain tells.
	bKey, _ := b.KeyPEM()
	forged := forgeLeaf(t, b, bKey, id)

	both := a.Pool()
	both.AppendCertsFromPEM(b.CertificatePEM())
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	for name, tc := range map[string]struct {
		roots *x509.CertPool
		certs []*x509.Certificate
		usage x509.ExtKeyUsage
		at    time.Time
		want  func(error) bool
	}{
		"client":      {a.Pool(), []*x509.Certificate{leaf}, client, now, nil},
		"server":      {a.Pool(), []*x509.Certificate{leaf}, server, now, nil},
		"both roots":  {both, []*x509.Certificate{leaf}, server, now, nil},
		"slow clock":  {a.Pool(), []*x509.Certificate{leaf}, client, now.Add(-time.Minute), nil},
		"none":        {a.Pool(), nil, client, now, isErr(identity.ErrNoCertificate)},
		"no roots":    {nil, []*x509.Certificate{leaf}, client, now, isUnknownAuthority},
		"other root":  {b.Pool(), []*x509.Certificate{leaf}, client, now, isUnknownAuthority},
		"expired":     {a.Pool(), []*x509.Certificate{leaf}, client, now.Add(2 * time.Hour), isExpired},
		"early":       {a.Pool(), []*x509.Certificate{leaf}, client, now.Add(-time.Hour), isExpired},
		"usage":       {a.Pool(), []*x509.Certificate{leaf}, x509.ExtKeyUsageCodeSigning, now, isAny},
		"forged":      {both, []*x509.Certificate{forged}, client, now, isErr(identity.ErrWrongTrustDomain)},
		"leaf second": {both, []*x509.Certificate{forged, leaf}, client, now, isErr(identity.ErrWrongTrustDomain)},
	} {
		got, err := identity.VerifyPeer(tc.roots, tls.ConnectionState{PeerCertificates: tc.certs}, tc.usage, tc.at)
		if tc.want == nil {
			if err != nil || got != id {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		} else if !tc.want(err) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func isAny(err error) bool { return err != nil }

func isErr(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

func isUnknownAuthority(err error) bool {
	var e x509.UnknownAuthorityError
	return errors.As(err, &e)
}

func isExpired(err error) bool {
	var e x509.CertificateInvalidError
	return errors.As(err, &e) && e.Reason == x509.Expired
}

// forgeLeaf signs a certificate for id with another trust domain's authority.
func forgeLeaf(t *testing.T, a *identity.Authority, keyPEM []byte, id identity.ID) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(keyPEM)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	cab, _ := pem.Decode(a.CertificatePEM())
	ca, err := x509.ParseCertificate(cab.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := issue(t, a, agentID(a.TrustDomain(), id.Organization, id.Name), time.Hour, now).Certificate.Leaf
	tmpl.URIs[0] = id.URI()
	tmpl.ExtraExtensions, tmpl.Extensions = nil, nil
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, tmpl.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func anyone(identity.ID) error { return nil }

func TestInnerTLS(t *testing.T) {
	a := newAuthority(t, "a.test")
	agent := issue(t, a, agentID("a.test", "acme", "edge"), time.Hour, now)
	proxyID := identity.ID{TrustDomain: "a.test", Organization: "acme", Role: identity.RoleProxy, Name: "p", Replica: "r1"}
	proxy := issue(t, a, proxyID, time.Hour, now)
	expired := issue(t, a, agent.ID, time.Hour, now.Add(-2*time.Hour))
	// An organization of the same name at another hub, whose authority is trusted too.
	b := newAuthority(t, "b.test")
	foreign := issue(t, b, identity.ID{TrustDomain: "b.test", Organization: "acme", Role: identity.RoleProxy, Name: "p", Replica: "r1"}, time.Hour, now)
	both := a.Pool()
	both.AppendCertsFromPEM(b.CertificatePEM())
	federated, federatedForeign := *agent, *foreign
	federated.Roots, federatedForeign.Roots = both, both
	errWrong := errors.New("wrong peer")
	insist := func(want identity.ID) func(identity.ID) error {
		return func(got identity.ID) error {
			if got != want {
				return errWrong
			}
			return nil
		}
	}
	hold := func(c *identity.Credentials) func() *identity.Credentials {
		return func() *identity.Credentials { return c }
	}
	for name, tc := range map[string]struct {
		client, server *tls.Config
		clientOK       func(error) bool
		serverOK       func(error) bool
	}{
		"good": {
			identity.InnerClientConfig(hold(proxy), insist(agent.ID)), identity.InnerServerConfig(hold(agent), insist(proxyID)), isNil, isNil,
		},
		"wrong agent": {
			identity.InnerClientConfig(hold(proxy), insist(proxyID)), identity.InnerServerConfig(hold(agent), insist(proxyID)), isErr(errWrong), isAny,
		},
		"wrong proxy": {
			identity.InnerClientConfig(hold(proxy), insist(agent.ID)), identity.InnerServerConfig(hold(agent), insist(agent.ID)), isAny, isErr(errWrong),
		},
		"proxy of another trust domain": {
			identity.InnerClientConfig(hold(&federatedForeign), anyone), identity.InnerServerConfig(hold(&federated), anyone),
			isErr(identity.ErrWrongTrustDomain), isAny,
		},
		"agent of another trust domain": {
			identity.InnerClientConfig(hold(&federated), anyone), identity.InnerServerConfig(hold(&federatedForeign), anyone),
			isErr(identity.ErrWrongTrustDomain), isAny,
		},
		"expired agent": {
			identity.InnerClientConfig(hold(proxy), insist(agent.ID)), identity.InnerServerConfig(hold(expired), insist(proxyID)), isExpired, isAny,
		},
		"no credentials": {
			identity.InnerClientConfig(hold(proxy), insist(agent.ID)), identity.InnerServerConfig(hold(nil), insist(proxyID)), isAny, isErr(identity.ErrNoCredentials),
		},
		"no certificate": {
			&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"postern-stream/1"}}, identity.InnerServerConfig(hold(agent), insist(proxyID)), isAny, isAny,
		},
		"no protocol": {
			identity.InnerClientConfig(hold(proxy), insist(agent.ID)), &tls.Config{Certificates: []tls.Certificate{agent.Certificate}},
			isErr(identity.ErrWrongProtocol), isAny,
		},
		"TLS 1.2": {
			&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, identity.InnerServerConfig(hold(agent), insist(proxyID)), isAny, isAny,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cErr, sErr := handshake(t, tc.client, tc.server)
			if !tc.clientOK(cErr) {
				t.Errorf("client: %v", cErr)
			}
			if !tc.serverOK(sErr) {
				t.Errorf("server: %v", sErr)
			}
		})
	}
}

func isNil(err error) bool { return err == nil }

// handshake runs both sides and moves one byte each way, since TLS 1.3 tells
// the client of a refusal only when it reads.
func handshake(t *testing.T, client, server *tls.Config) (cErr, sErr error) {
	t.Helper()
	c, s := tcpPair(t) // not net.Pipe: both sides may write alerts at once
	deadline := time.Now().Add(10 * time.Second)
	_, _ = c.SetDeadline(deadline), s.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		defer s.Close()
		conn := tls.Server(s, server)
		if err := conn.Handshake(); err != nil {
			done <- err
			return
		}
		_, err := conn.Write([]byte{1})
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		done <- err
	}()
	conn := tls.Client(c, client)
	_, cErr = conn.Read(make([]byte, 1))
	if cErr == nil {
		_, cErr = conn.Write([]byte{1})
	}
	c.Close()
	return cErr, <-done
}

// tcpPair returns the two ends of a connection over loopback.
func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestParseRequest(t *testing.T) {
	key, _ := identity.NewKey()
	req, err := identity.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := identity.ParseRequest(req)
	if err != nil || !key.PublicKey.Equal(pub) {
		t.Fatalf("ParseRequest = %v, %v", pub, err)
	}
	block, _ := pem.Decode(req)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for name, bad := range map[string][]byte{
		"signature": pem.EncodeToMemory(block), "empty": nil, "twice": append(bytes.Clone(req), req...), "half": req[:len(req)/2],
	} {
		if _, err := identity.ParseRequest(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseCertificates(t *testing.T) {
	a := newAuthority(t, "a.test")
	ca := a.CertificatePEM()
	key, _ := a.KeyPEM()
	for name, tc := range map[string]struct {
		in   []byte
		want int
	}{
		"one": {ca, 1}, "two": {append(bytes.Clone(ca), ca...), 2}, "none": {[]byte("hello"), 0}, "empty": {nil, 0},
		"key too": {append(bytes.Clone(ca), key...), 0}, "cut": {append(bytes.Clone(ca), ca[:len(ca)/2]...), 0},
	} {
		got, err := identity.ParseCertificates(tc.in)
		if (err == nil) != (tc.want > 0) || len(got) != tc.want {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
	}
}

func TestNewCredentialsRefusesForeignKey(t *testing.T) {
	a := newAuthority(t, "a.test")
	key, _ := identity.NewKey()
	other, _ := identity.NewKey()
	chain, err := a.IssueParty(agentID("a.test", "acme", "edge"), key.Public(), identity.Holder{}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.NewCredentials(chain, other, a.CertificatePEM()); err == nil {
		t.Error("foreign key accepted")
	}
}

func TestPin(t *testing.T) {
	for _, bad := range []string{"", "sha256:", "sha256:zz", "sha1:" + strings.Repeat("00", 32), strings.Repeat("00", 32)} {
		if got, err := identity.ParsePin(bad); err == nil {
			t.Errorf("ParsePin(%q) = %q", bad, got)
		}
	}
	want := "sha256:" + strings.Repeat("0a", 32)
	got, err := identity.ParsePin("SHA256:" + strings.TrimSuffix(strings.Repeat("0A:", 32), ":"))
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestSecretHash(t *testing.T) {
	h := identity.HashSecret("secret")
	if !identity.SecretMatches("secret", h) || identity.SecretMatches("secreT", h) || identity.SecretMatches("secret", "") {
		t.Error("SecretMatches is wrong")
	}
}

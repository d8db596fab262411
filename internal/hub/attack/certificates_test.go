package attack_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"postern.dev/postern/internal/api"
	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/enroll"
	"postern.dev/postern/internal/identity"
	"postern.dev/postern/internal/pipe"
	"postern.dev/postern/internal/uplink"
	"postern.dev/postern/internal/wire"
)

// probe sends bytes through the relay as the holder of a certificate.
func (w *world) probe(cert *tls.Certificate) error {
	raw, err := w.uplink.DialRaw(w.t.Context())
	if err != nil {
		return err
	}
	defer raw.Close()
	_, err = pipe.Probe(w.t.Context(), raw, w.uplink.TLSConfig(wire.ALPNPipe, func() *tls.Certificate { return cert }))
	return err
}

// greet waits for the first words of the bus.
func (w *world) greet(cert *tls.Certificate) error {
	c, err := w.uplink.DialTLS(w.t.Context(), wire.ALPNBus, func() *tls.Certificate { return cert })
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err = c.Read(make([]byte, 1))
	return err
}

// TestAttackForgedCertificates comes to the port with certificates that name the
// victim's parties. Some are even signed by the hub's own authority, which an attacker
// does not have.
func TestAttackForgedCertificates(t *testing.T) {
	w := newWorld(t)
	good := w.enrol(acme, identity.RoleProxy, "near", "p1")
	if err := errors.Join(w.probe(&good.Credentials.Certificate), w.greet(&good.Credentials.Certificate)); err != nil {
		t.Fatal("a good certificate:", err)
	}
	ca, key := w.authority()
	domain := w.info.TrustDomain
	victim := "spiffe://" + domain + "/org/acme/agent/edge/r1"
	if err := w.probe(forge(t, nil, []string{victim}, ca, key)); err != nil {
		t.Fatal("a forgery that only the authority can make, and that is not the point here:", err)
	}

	otherCA := forge(t, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		c.Subject = ca.Subject
	}, []string{"spiffe://" + domain}, nil, nil)
	type forgery struct {
		change func(*x509.Certificate)
		uris   []string
		parent *x509.Certificate
		signer crypto.PrivateKey
	}
	party := good.Credentials.Certificate
	for name, f := range map[string]forgery{
		"signed by itself":           {nil, []string{victim}, nil, nil},
		"of an authority of our own": {nil, []string{victim}, otherCA.Leaf, otherCA.PrivateKey},
		"signed by a party":          {nil, []string{victim}, party.Leaf, party.PrivateKey},
		"two URIs":                   {nil, []string{victim, "spiffe://" + domain + "/org/evil/agent/edge/r1"}, ca, key},
		"no URI":                     {nil, nil, ca, key},
		"an authority's":             {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, []string{victim}, ca, key},
		"expired":                    {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, []string{victim}, ca, key},
		"not yet valid":              {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, []string{victim}, ca, key},
		"for mail":                   {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }, []string{victim}, ca, key},
		"for servers only":           {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, []string{victim}, ca, key},
		"another trust domain":       {nil, []string{"spiffe://other.example/org/acme/agent/edge/r1"}, ca, key},
		"the trust domain itself":    {nil, []string{"spiffe://" + domain}, ca, key},
		"https":                      {nil, []string{"https://" + domain + "/org/acme/agent/edge/r1"}, ca, key},
		"dots in the path":           {nil, []string{"spiffe://" + domain + "/org/evil/../acme/agent/edge/r1"}, ca, key},
		"escapes in the path":        {nil, []string{"spiffe://" + domain + "/org/ac%6de/agent/edge/r1"}, ca, key},
		"an escaped slash":           {nil, []string{"spiffe://" + domain + "/org/evil%2f..%2facme/agent/edge/r1"}, ca, key},
		"capitals":                   {nil, []string{"spiffe://" + domain + "/org/ACME/agent/edge/r1"}, ca, key},
		"a slash at the end":         {nil, []string{victim + "/"}, ca, key},
		"two slashes":                {nil, []string{"spiffe://" + domain + "/org//acme/agent/edge/r1"}, ca, key},
		"a query":                    {nil, []string{victim + "?x"}, ca, key},
		"a fragment":                 {nil, []string{victim + "#x"}, ca, key},
		"a user":                     {nil, []string{"spiffe://u@" + domain + "/org/acme/agent/edge/r1"}, ca, key},
		"a port":                     {nil, []string{"spiffe://" + domain + ":1/org/acme/agent/edge/r1"}, ca, key},
		"an unknown role":            {nil, []string{"spiffe://" + domain + "/org/acme/admin/edge/r1"}, ca, key},
	} {
		t.Run(name, func(t *testing.T) {
			signer, _ := f.signer.(crypto.Signer)
			cert := forge(t, f.change, f.uris, f.parent, signer)
			chain := *cert
			if f.parent == otherCA.Leaf || f.parent == party.Leaf {
				chain.Certificate = append(chain.Certificate, f.parent.Raw)
			}
			if w.probe(&chain) == nil {
				t.Error("the relay lets it in")
			}
			if w.greet(&chain) == nil {
				t.Error("the bus lets it in")
			}
		})
	}
	if w.greet(nil) == nil || w.probe(nil) == nil {
		t.Error("no certificate at all is let in")
	}
	if err := w.probe(&party); err != nil {
		t.Error("the good one, after all this:", err)
	}
}

// TestAttackPartyPosesAsHub serves TLS with the good certificate of a party. Nobody
// takes it for the hub's.
func TestAttackPartyPosesAsHub(t *testing.T) {
	w := newWorld(t)
	mallory := w.enrol(evil, identity.RoleAgent, agentID, "r1")
	impostor := serve(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(patience))
		tc := tls.Server(c, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{mallory.Credentials.Certificate},
			NextProtos: []string{wire.ALPNPipe, wire.ALPNBus, "h2", "http/1.1"},
		})
		_, _ = io.Copy(io.Discard, tc)
	})
	for name, c := range map[string]uplink.Config{
		"by CA file": {CAFile: w.info.CAFile}, "by pin": {CAPin: w.info.Pin},
	} {
		c.ConnectURL, c.Getenv = "tls://"+impostor.addr, noEnv
		d, err := uplink.New(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, alpn := range []string{wire.ALPNPipe, wire.ALPNBus} {
			conn, err := d.DialTLS(t.Context(), alpn, nil)
			if err == nil {
				_ = conn.Close()
				t.Errorf("%s, %s: a party is taken for the hub", name, alpn)
			} else if f := wire.AsFailure(err, wire.LegUnknown); f.Leg != wire.LegTLS {
				t.Errorf("%s, %s: %v; want a failure of TLS", name, alpn, err)
			}
		}
		d.CloseIdle()
	}
}

// TestAttackRevokedCertificate keeps credentials whose token was revoked.
func TestAttackRevokedCertificate(t *testing.T) {
	w := newWorld(t)
	if err := w.admin.DeleteRobotToken(t.Context(), acme, "machines", "first"); err != nil {
		t.Fatal(err)
	}
	token, err := w.admin.CreateRobotToken(t.Context(), acme, "machines", api.CreateToken{Name: "second"})
	if err != nil {
		t.Fatal(err)
	}
	thief := w.enrolBy(token.Token, acme, identity.RoleProxy, "near", "p1")
	other := w.enrol(evil, identity.RoleProxy, "near", "p1")
	if err := errors.Join(w.probe(&thief.Credentials.Certificate), w.greet(&thief.Credentials.Certificate)); err != nil {
		t.Fatal(err)
	}
	live, err := w.speak(thief, &thief.Credentials.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.admin.DeleteRobotToken(t.Context(), acme, "machines", "second"); err != nil {
		t.Fatal(err)
	}
	if _, err := live.r.ReadString(0); errors.Is(err, errTimeout) {
		t.Error("the bus connection lives on")
	}
	if w.probe(&thief.Credentials.Certificate) == nil || w.greet(&thief.Credentials.Certificate) == nil {
		t.Error("a revoked certificate is let in")
	}
	// The bus user is void too, beside a certificate that is good.
	if _, err := w.speak(thief, &other.Credentials.Certificate); err == nil {
		t.Error("a revoked bus user is let in with the certificate of another party")
	}
	if err := w.probe(&other.Credentials.Certificate); err != nil {
		t.Error("the other organization's:", err)
	}
}

// TestAttackReservedNames asks for names that mean something to others.
func TestAttackReservedNames(t *testing.T) {
	w := newWorld(t)
	ask := func(role, name, replica string) error {
		public, _, err := bus.NewUserKey()
		if err != nil {
			t.Fatal(err)
		}
		key, err := identity.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		csr, err := identity.NewRequest(key)
		if err != nil {
			t.Fatal(err)
		}
		client := api.Client{BaseURL: w.admin.BaseURL, HTTP: w.admin.HTTP}
		_, err = client.Exchange(t.Context(), api.TokenRequest{
			SubjectToken: w.tokens[evil].Token, SubjectTokenType: api.TokenTypeJWT, Organization: evil, Role: role, Name: name, Replica: replica,
			CSR: string(csr), BusKey: public,
		})
		return err
	}
	if err := ask("proxy", "near", "p1"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][3]string{
		{"proxy", "hub", "p1"}, {"hub", "hub", "n1"}, {"hub", "hub", ""}, {"admin", "a", "b"}, {"", "a", "b"}, {"Proxy", "a", "b"},
		{"proxy", "*", "p1"}, {"proxy", ">", "p1"}, {"proxy", "a.b", "p1"}, {"proxy", "a/b", "p1"}, {"agent", "edge", "../r1"},
		{"agent", "", "r1"}, {"agent", "edge", ""}, {"agent", "edge", "*"}, {"agent", "edge\x00", "r1"}, {"agent", "EDGE", "r1"},
		{"agent", "edge ", "r1"}, {"agent", "ed%67e", "r1"}, {"agent", "édge", "r1"},
	} {
		if ask(bad[0], bad[1], bad[2]) == nil {
			t.Errorf("%q: it gets credentials", bad)
		}
	}
}

// TestAttackRequestForMore asks for a certificate with names of its own choice.
func TestAttackRequestForMore(t *testing.T) {
	w := newWorld(t)
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public, _, err := bus.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	client := api.Client{BaseURL: w.admin.BaseURL, HTTP: w.admin.HTTP}
	res, err := client.Exchange(t.Context(), api.TokenRequest{
		SubjectToken: w.tokens[evil].Token, SubjectTokenType: api.TokenTypeJWT, Organization: evil, Role: "agent", Name: agentID, Replica: "r1",
		CSR: greedyRequest(t, key, "spiffe://"+w.info.TrustDomain+"/org/acme/agent/edge/r1", "spiffe://"+w.info.TrustDomain+"/hub/n1"), BusKey: public,
	})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := identity.ParseCertificates([]byte(res.AccessToken))
	if err != nil {
		t.Fatal(err)
	}
	leaf := certs[0]
	if len(certs) != 1 || len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/org/evil/agent/edge/r1" || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 ||
		leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 || leaf.Subject.CommonName == "hub" {
		t.Errorf("the certificate says %v, %v, %v, CA %t", leaf.Subject, leaf.URIs, leaf.DNSNames, leaf.IsCA)
	}
}

// greedyRequest is a certificate request that names all it can.
func greedyRequest(t *testing.T, key crypto.Signer, uris ...string) string {
	t.Helper()
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "hub"}, DNSNames: []string{"hub", "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		EmailAddresses: []string{"root@example.org"},
		// Basic constraints of an authority.
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// TestAttackRevokedName keeps the credentials of an agent and a proxy that were revoked by
// name, and the token that gave them: the token is good for other names still, but the
// credentials are refused by everybody, and others' of the same names are not.
func TestAttackRevokedName(t *testing.T) {
	w := newWorld(t)
	for _, role := range []identity.Role{identity.RoleAgent, identity.RoleProxy} {
		thief, other := w.enrol(acme, role, "stolen", "p1"), w.enrol(evil, role, "stolen", "p1")
		namesake := w.enrol(acme, role, "stolen-2", "p1")
		live, err := w.speak(thief, &thief.Credentials.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		v, err := w.admin.RevokeParty(t.Context(), acme, string(role), "stolen", api.RevokeParty{})
		if err != nil {
			t.Fatal(err)
		}
		if v.Cut != 1 {
			t.Errorf("%s: %d connections were cut; want the one to the bus", role, v.Cut)
		}
		if _, err := live.r.ReadString(0); errors.Is(err, errTimeout) {
			t.Errorf("%s: the bus connection lives on", role)
		}
		if w.probe(&thief.Credentials.Certificate) == nil || w.greet(&thief.Credentials.Certificate) == nil {
			t.Errorf("%s: a revoked certificate is let in", role)
		}
		if _, err := w.speak(thief, &namesake.Credentials.Certificate); err == nil {
			t.Errorf("%s: a revoked bus user is let in with the certificate of another party", role)
		}
		for name, g := range map[string]*enroll.Grant{"the other organization's": other, "another of the same organization": namesake} {
			if _, err := w.speak(g, &g.Credentials.Certificate); err != nil {
				t.Errorf("%s, %s: %v", role, name, err)
			}
			if err := w.probe(&g.Credentials.Certificate); err != nil {
				t.Errorf("%s, %s: %v", role, name, err)
			}
		}
		err = enroll.New(w.uplink, enroll.Request{
			Organization: acme, Role: role, Name: "stolen", Replica: "p2", Version: "test",
			Secret: &enroll.RobotToken{Value: w.tokens[acme].Token}, NewBusKey: bus.NewUserKey,
		}, nil).Start(t.Context())
		if !api.IsPartyRevoked(err) {
			t.Errorf("%s: another replica: %v", role, err)
		}
	}
}

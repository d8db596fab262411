package servingcert

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var hosts = []string{"postern-operator.postern-system.svc"}

func mustNext(t interface {
	Helper()
	Fatal(args ...any)
}, now time.Time, m Material, published []byte,
) Material {
	t.Helper()
	next, err := Next(now, m, published, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// trusts reports whether an API server that trusts a bundle accepts what is served.
func trusts(now time.Time, bundle []byte, served Material) bool {
	pair, err := tls.X509KeyPair(served.Cert, served.Key)
	if err != nil {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	_, err = pair.Leaf.Verify(x509.VerifyOptions{DNSName: hosts[0], Roots: pool, CurrentTime: now})
	return err == nil
}

func TestAGoodSecretStays(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	first := mustNext(t, now, Material{}, nil)
	if !trusts(now, first.Authorities, first) {
		t.Fatal("the first certificate is not trusted")
	}
	if again := mustNext(t, now.Add(time.Hour), first, first.Authorities); !again.Equal(first) {
		t.Error("an hour later all is new")
	}
}

func TestTheCertificateIsRenewedBeforeItExpires(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	first := mustNext(t, now, Material{}, nil)
	now = now.Add(leafTime * 3 / 4)
	next := mustNext(t, now, first, first.Authorities)
	if bytes.Equal(next.Cert, first.Cert) || !bytes.Equal(next.Authorities, first.Authorities) {
		t.Error("want a new certificate of the same authority")
	}
}

// TestTheOperatorWasAwayForLong finds a certificate that has expired, and then its authority too.
func TestTheOperatorWasAwayForLong(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	first := mustNext(t, start, Material{}, nil)
	for _, away := range []time.Duration{leafTime + time.Hour, authorityTime + time.Hour} {
		now := start.Add(away)
		if trusts(now, first.Authorities, first) {
			t.Fatalf("after %s nothing has expired", away)
		}
		next := mustNext(t, now, first, first.Authorities)
		if !trusts(now, next.Authorities, next) {
			t.Errorf("after %s the API server does not trust what is served", away)
		}
	}
}

func TestANewAuthorityIsPublishedBeforeItIsUsed(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	first := mustNext(t, now, Material{}, nil)
	// The certificate was renewed all along.
	now = now.Add(authorityTime * 3 / 4)
	pair := newSigner(valid(now, first.Authorities), first.AuthorityKey)
	cert, key, err := pair.sign(now, hosts)
	if err != nil {
		t.Fatal(err)
	}
	first.Cert, first.Key = cert, key

	second := mustNext(t, now, first, first.Authorities)
	if bytes.Equal(second.AuthorityKey, first.AuthorityKey) || !bytes.Equal(second.Cert, first.Cert) {
		t.Fatal("want a new authority, and the old certificate")
	}
	if n := len(valid(now, second.Authorities)); n != 2 {
		t.Fatalf("%d authorities are trusted, want both", n)
	}
	third := mustNext(t, now, second, second.Authorities)
	if bytes.Equal(third.Cert, second.Cert) || !trusts(now, second.Authorities, third) {
		t.Fatal("want a certificate of the authority that is published now")
	}
	// The old one is trusted as long as it lives, and not longer.
	now = now.Add(authorityTime / 3)
	last := mustNext(t, now, third, third.Authorities)
	if n := len(valid(now, last.Authorities)); n != 1 {
		t.Errorf("%d authorities are trusted after the first expired", n)
	}
}

func TestADeletedSecret(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	first := mustNext(t, now, Material{}, nil)
	next := mustNext(t, now, Material{}, first.Authorities)
	if !trusts(now, next.Authorities, next) {
		t.Error("the new certificate is not trusted")
	}
	if !trusts(now, next.Authorities, first) {
		t.Error("what other replicas still serve is not trusted any more")
	}
}

func TestAClockThatWasWrong(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	future := mustNext(t, now.Add(leafTime*3), Material{}, nil)
	next := mustNext(t, now, future, future.Authorities)
	if !trusts(now, next.Authorities, next) {
		t.Error("what is served is not valid yet")
	}
}

func TestOtherNames(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	first := mustNext(t, now, Material{}, nil)
	next, err := Next(now, first, first.Authorities, []string{"other.svc"})
	if err != nil || bytes.Equal(next.Cert, first.Cert) {
		t.Errorf("the certificate is not for the new name (%v)", err)
	}
}

// due reports whether a certificate is to be renewed.
func due(now time.Time, cert []byte) bool {
	block, _ := pem.Decode(cert)
	if block == nil {
		return false
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	return err == nil && old(now, leaf)
}

// TestTheAPIServerTrustsEveryReplica plays years: replicas load late, the Secret is deleted and
// damaged, the API server's copy is overwritten. As long as the keeper steps often enough, what
// the keeper published is trusted for what every replica serves.
func TestTheAPIServerTrustsEveryReplica(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_800_000_000, 0)
		secret := mustNext(t, now, Material{}, nil)
		published := secret.Authorities
		replicas := []Material{secret, secret}
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 20*24).Draw(t, "hours")) * time.Hour)
			event := rapid.IntRange(0, 9).Draw(t, "event")
			if due(now, secret.Cert) {
				event = -1 // a Secret that is damaged whenever the keeper comes is never renewed
			}
			switch event {
			case 0:
				secret = Material{}
			case 1:
				secret.AuthorityKey = []byte("damaged")
			case 2:
				secret.Cert = nil
			}
			next := mustNext(t, now, secret, published)
			published = next.Authorities // first this,
			late := rapid.IntRange(0, len(replicas)).Draw(t, "late replica")
			if !trusts(now, published, replicas[0]) {
				t.Fatal("a replica is not trusted before it loads")
			}
			secret = next // then that
			for i := range replicas {
				if i != late {
					replicas[i] = secret
				}
				if !trusts(now, published, replicas[i]) {
					t.Fatalf("replica %d is not trusted", i)
				}
			}
			replicas = []Material{secret, secret} // a late one is late for one step
		}
	})
}

// FuzzNext takes a Secret and a configuration that somebody wrote.
func FuzzNext(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	m := mustNext(f, now, Material{}, nil)
	f.Add(m.Authorities, m.AuthorityKey, m.Cert, m.Key, m.Authorities)
	f.Add([]byte("x"), []byte{}, m.Key, m.Cert, []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, authorities, authorityKey, cert, key, published []byte) {
		next, err := Next(now, Material{authorities, authorityKey, cert, key}, published, hosts)
		if err != nil {
			t.Fatal(err)
		}
		if !trusts(now, next.Authorities, next) {
			t.Fatal("what is served is not trusted")
		}
	})
}

// TestASecretThatIsDamagedAgainAndAgain makes authorities that sign nothing, until the Secret is
// deleted, and nobody can tell which of them the replicas need.
func TestASecretThatIsDamagedAgainAndAgain(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	first := mustNext(t, now, Material{}, nil)
	m := first
	for range 2 * maxTrusted {
		m.AuthorityKey = []byte("damaged")
		m = mustNext(t, now, m, m.Authorities)
	}
	if !bytes.Equal(m.Cert, first.Cert) {
		t.Fatal("want the first certificate to be served still")
	}
	last := mustNext(t, now, Material{}, m.Authorities)
	if !trusts(now, last.Authorities, first) {
		t.Error("what replicas serve is not trusted any more")
	}
	if n := len(valid(now, last.Authorities)); n > maxTrusted {
		t.Errorf("%d authorities", n)
	}
}

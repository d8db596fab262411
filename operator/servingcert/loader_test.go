package servingcert

import (
	"encoding/pem"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// TestACertificateOfSomebodyElse has cert-manager, so to speak, write the Secret: without the
// authority's key. What it holds is served, a renewal too, and never what is damaged.
func TestACertificateOfSomebodyElse(t *testing.T) {
	kube := fake.NewClientBuilder().WithScheme(scheme.Scheme).Build()
	l := NewLoader(Config{Namespace: "system", Secret: "webhook", Client: kube, Log: slog.New(slog.DiscardHandler)})
	if l.Step(t.Context()) == nil || l.Ready() == nil {
		t.Error("ready without a Secret")
	}
	now := time.Now()
	first, other := mustNext(t, now, Material{}, nil), mustNext(t, now, Material{}, nil)
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "system", Name: "webhook"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{keyAuthorities: first.Authorities, keyCert: first.Cert, keyKey: first.Key},
	}
	if err := kube.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	serves := func(want Material) {
		t.Helper()
		_ = l.Step(t.Context()) // a damaged Secret is an error
		c, err := l.Certificate(nil)
		if err != nil || !trusts(now, want.Authorities, Material{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), Key: want.Key}) {
			t.Errorf("it does not serve what it should: %v", err)
		}
	}
	serves(first)
	for _, step := range []struct {
		key  []byte
		want Material
	}{{first.Key, first}, {other.Key, other}} { // a certificate with the key of another one is none
		secret.Data = map[string][]byte{keyAuthorities: other.Authorities, keyCert: other.Cert, keyKey: step.key}
		if err := kube.Update(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		serves(step.want)
	}
}

package servingcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Keys of the Secret. Those of cert-manager are the same, but for the authority's key.
const (
	keyAuthorities  = "ca.crt"
	keyAuthorityKey = "ca.key"
	keyCert         = corev1.TLSCertKey
	keyKey          = corev1.TLSPrivateKeyKey
)

// checkTime is how often the Secret is looked at.
const checkTime = 10 * time.Second

// Config says where things are.
type Config struct {
	Namespace, Secret string   // of the Secret
	Webhooks          string   // name of the MutatingWebhookConfiguration
	Names             []string // host names of the webhook
	Labels            map[string]string
	// Client reads without a cache: what was written a moment ago counts.
	Client client.Client
	Log    *slog.Logger
}

// Keeper keeps Secret and webhook configuration good. One of several operators runs it.
type Keeper struct{ cfg Config }

// NewKeeper returns a keeper.
func NewKeeper(cfg Config) *Keeper { return &Keeper{cfg: cfg} }

// NeedLeaderElection says that one of several does it.
func (*Keeper) NeedLeaderElection() bool { return true }

// Start keeps them until ctx ends.
func (k *Keeper) Start(ctx context.Context) error {
	return every(ctx, func() {
		if err := k.Step(ctx, time.Now()); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("the webhook's certificate was not looked after", "error", err)
		}
	})
}

// Step looks once. What the API server is to trust is written before what is served.
func (k *Keeper) Step(ctx context.Context, now time.Time) error {
	secret := &corev1.Secret{}
	err := k.cfg.Client.Get(ctx, client.ObjectKey{Namespace: k.cfg.Namespace, Name: k.cfg.Secret}, secret)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the Secret: %w", err)
	}
	found := err == nil
	hooks := &admissionregistration.MutatingWebhookConfiguration{}
	if err := k.cfg.Client.Get(ctx, client.ObjectKey{Name: k.cfg.Webhooks}, hooks); err != nil {
		return fmt.Errorf("read the webhook configuration: %w", err)
	}
	have := material(secret)
	next, err := Next(now, have, published(hooks), k.cfg.Names)
	if err != nil {
		return err
	}
	if err := k.publish(ctx, hooks, next.Authorities); err != nil {
		return err
	}
	if found && next.Equal(have) {
		return nil
	}
	return k.write(ctx, secret, next, found)
}

// published returns the authorities of a configuration's first webhook; publish keeps all the same.
func published(hooks *admissionregistration.MutatingWebhookConfiguration) []byte {
	if len(hooks.Webhooks) == 0 {
		return nil
	}
	first := hooks.Webhooks[0].ClientConfig.CABundle
	for _, w := range hooks.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, first) {
			return nil
		}
	}
	return first
}

func (k *Keeper) publish(ctx context.Context, hooks *admissionregistration.MutatingWebhookConfiguration, authorities []byte) error {
	before := hooks.DeepCopy()
	changed := false
	for i := range hooks.Webhooks {
		bundle := &hooks.Webhooks[i].ClientConfig.CABundle
		changed = changed || !bytes.Equal(*bundle, authorities)
		*bundle = authorities
	}
	if !changed {
		return nil
	}
	// The list of webhooks is replaced as a whole, so that nobody may have changed it meanwhile.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := k.cfg.Client.Patch(ctx, hooks, patch); err != nil {
		return fmt.Errorf("tell the API server whom to trust: %w", err)
	}
	k.cfg.Log.Info("told the API server which authorities of the webhook to trust", "configuration", k.cfg.Webhooks)
	return nil
}

func (k *Keeper) write(ctx context.Context, secret *corev1.Secret, m Material, found bool) error {
	secret.Data = map[string][]byte{keyAuthorities: m.Authorities, keyAuthorityKey: m.AuthorityKey, keyCert: m.Cert, keyKey: m.Key}
	var err error
	if found {
		err = k.cfg.Client.Update(ctx, secret) // refused if somebody wrote it meanwhile
	} else {
		secret.ObjectMeta = metav1.ObjectMeta{Namespace: k.cfg.Namespace, Name: k.cfg.Secret, Labels: k.cfg.Labels}
		secret.Type = corev1.SecretTypeTLS
		err = k.cfg.Client.Create(ctx, secret)
	}
	if err != nil {
		return fmt.Errorf("write the Secret: %w", err)
	}
	k.cfg.Log.Info("wrote the webhook's certificate", "namespace", k.cfg.Namespace, "secret", k.cfg.Secret)
	return nil
}

func material(s *corev1.Secret) Material {
	return Material{Authorities: s.Data[keyAuthorities], AuthorityKey: s.Data[keyAuthorityKey], Cert: s.Data[keyCert], Key: s.Data[keyKey]}
}

// Loader serves what the Secret holds. Every operator has one.
type Loader struct {
	cfg     Config
	current atomic.Pointer[tls.Certificate]
	cert    []byte // of current, in PEM
}

// NewLoader returns a loader that has nothing to serve yet.
func NewLoader(cfg Config) *Loader { return &Loader{cfg: cfg} }

// NeedLeaderElection says that every operator does it.
func (*Loader) NeedLeaderElection() bool { return false }

// Start loads until ctx ends.
func (l *Loader) Start(ctx context.Context) error {
	return every(ctx, func() {
		if err := l.Step(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.Debug("the webhook's certificate was not loaded", "error", err)
		}
	})
}

// Step looks once. A Secret that is gone or damaged leaves what is served as it is.
func (l *Loader) Step(ctx context.Context) error {
	secret := &corev1.Secret{}
	if err := l.cfg.Client.Get(ctx, client.ObjectKey{Namespace: l.cfg.Namespace, Name: l.cfg.Secret}, secret); err != nil {
		return fmt.Errorf("read the Secret: %w", err)
	}
	m := material(secret)
	if bytes.Equal(m.Cert, l.cert) {
		return nil
	}
	pair, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		return fmt.Errorf("read the certificate: %w", err)
	}
	l.cert = m.Cert
	l.current.Store(&pair)
	l.cfg.Log.Info("serving the webhook with a new certificate", "expires", pair.Leaf.NotAfter)
	return nil
}

// Certificate is for tls.Config.GetCertificate.
func (l *Loader) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := l.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("the webhook has no certificate yet")
}

// Ready says why the webhook cannot be served, or returns nil.
func (l *Loader) Ready() error {
	_, err := l.Certificate(nil)
	return err
}

// every calls do now and then, until ctx ends.
func every(ctx context.Context, do func()) error {
	ticker := time.NewTicker(checkTime)
	defer ticker.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

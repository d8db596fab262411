package embedded

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"postern.dev/postern/internal/bus"
	"postern.dev/postern/internal/registry"
)

// MaxValue bounds a value of a KV, in bytes.
const MaxValue = 256 << 10

// storeTimeout bounds one call of a KV, on top of the caller's context.
const storeTimeout = 10 * time.Second

// connectHub opens a connection into the hub's own account.
func (s *Server) connectHub() (*nats.Conn, error) {
	public, seed, err := bus.NewUserKey()
	if err != nil {
		return nil, err
	}
	claims := jwt.NewUserClaims(public)
	claims.Name = "hub store"
	token, err := claims.Encode(s.hub.key)
	if err != nil {
		return nil, fmt.Errorf("sign bus token: %w", err)
	}
	return nats.Connect("", nats.InProcessServer(s.ns), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.Name("hub store"), nats.ReconnectBufSize(-1), nats.ReconnectWait(100*time.Millisecond),
		nats.UserJWT(func() (string, error) { return token, nil }, func(nonce []byte) ([]byte, error) {
			kp, err := nkeys.FromSeed(seed)
			if err != nil {
				return nil, err
			}
			defer kp.Wipe()
			return kp.Sign(nonce)
		}))
}

// KV is a bucket of small values in the bus's store, on disk and encrypted. It
// is a registry.Store.
type KV struct {
	kv     jetstream.KeyValue
	stream jetstream.Stream // that holds the values
}

var _ registry.Store = (*KV)(nil)

// KV opens a bucket, and makes it at first use. Its name has letters, digits,
// '-' and '_'. It serves until Shutdown.
func (s *Server) KV(ctx context.Context, bucket string) (*KV, error) {
	return s.ExpiringKV(ctx, bucket, 0)
}

// ExpiringKV is KV for values that are forgotten some time after they were
// written; 0 means never.
func (s *Server) ExpiringKV(ctx context.Context, bucket string, age time.Duration) (*KV, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	js, err := jetstream.New(s.hubConn)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, History: 1, Storage: jetstream.FileStorage, MaxValueSize: MaxValue, Replicas: 1, TTL: age,
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	stream, err := js.Stream(ctx, streamPrefix+bucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	return &KV{kv, stream}, nil
}

// Get implements registry.Store.
func (k *KV) Get(ctx context.Context, key string) ([]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	e, err := k.kv.Get(ctx, key)
	if err != nil {
		return nil, 0, storeError("get", key, err)
	}
	return e.Value(), e.Revision(), nil
}

// Create implements registry.Store.
func (k *KV) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rev, err := k.kv.Create(ctx, key, value)
	return rev, storeError("create", key, err)
}

// Update implements registry.Store.
func (k *KV) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if revision == 0 {
		return 0, registry.ErrConflict // NATS would take it for a creation
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rev, err := k.kv.Update(ctx, key, value, revision)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return 0, registry.ErrConflict
	}
	return rev, storeError("update", key, err)
}

// Delete implements registry.Store.
func (k *KV) Delete(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := k.kv.Delete(ctx, key); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return storeError("delete", key, err)
	}
	return nil
}

func storeError(verb, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return registry.ErrNotFound
	case errors.Is(err, jetstream.ErrKeyExists):
		return registry.ErrExists
	default:
		return fmt.Errorf("%s %q in the bus's store: %w", verb, key, err)
	}
}

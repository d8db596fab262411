package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"postern.dev/postern/internal/podcluster"
)

const (
	// secretLook is how often the API server is asked whether the Secret changed.
	secretLook = 5 * time.Second

	// secretTries is how often a change is tried that others get in the way of.
	secretTries = 8
)

// Secret keeps keys in a Secret of the Kubernetes cluster that the issuer runs in, in a pod: what it
// has is in the same form as in a Folder. Any number of issuers may use one, and change the keys by
// turns. Safe for concurrent use.
type Secret struct {
	cluster         *podcluster.Cluster
	namespace, name string

	mu    sync.Mutex
	asked time.Time
	stamp string
}

// NewSecret returns the keys in a Secret, [NAMESPACE/]NAME; the namespace is that of the pod if it is
// not given. The Secret need not be there.
func NewSecret(cluster *podcluster.Cluster, name string) (*Secret, error) {
	if !cluster.There() {
		return nil, fmt.Errorf("keys in Secret %s: %w", name, podcluster.ErrNoPod)
	}
	s := &Secret{cluster: cluster, name: name}
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		s.namespace, s.name = namespace, rest
		return s, nil
	}
	var err error
	s.namespace, err = cluster.Namespace()
	return s, err
}

// Load implements Keys.
func (s *Secret) Load() (Ring, error) {
	_, r, err := s.load()
	return r, err
}

// load reads the Secret; one that is not there, or has no keys yet, is an empty ring.
func (s *Secret) load() (podcluster.Secret, Ring, error) {
	have, err := s.cluster.Secret(context.Background(), s.namespace, s.name) // the cluster bounds its time
	if errors.Is(err, podcluster.ErrNotFound) {
		return podcluster.Secret{Namespace: s.namespace, Name: s.name}, Ring{}, nil
	}
	if err != nil {
		return podcluster.Secret{}, Ring{}, err
	}
	b, ok := have.Data[keysFile]
	if !ok {
		return have, Ring{}, nil
	}
	r, err := parseRecord(b)
	if err != nil {
		return have, Ring{}, fmt.Errorf("Secret %s/%s: %w: %w", s.namespace, s.name, ErrCorrupt, err)
	}
	return have, r, nil
}

// Change implements Keys. Nobody locks the Secret: a change that another one overtook is done again
// with what that left.
func (s *Secret) Change(change func(*Ring) (bool, error)) (Ring, error) {
	for try := 1; ; try++ {
		have, r, err := s.load()
		if err != nil {
			return Ring{}, err
		}
		if changed, err := change(&r); err != nil || !changed {
			return r, err
		}
		b, err := marshalRing(r)
		if err != nil {
			return Ring{}, err
		}
		next := podcluster.Secret{
			Namespace: s.namespace, Name: s.name, Version: have.Version, Data: map[string][]byte{keysFile: b},
			Labels: map[string]string{"app.kubernetes.io/managed-by": "postern-issuer"},
		}
		kept, err := s.cluster.PutSecret(context.Background(), next)
		if errors.Is(err, podcluster.ErrConflict) && try < secretTries {
			continue
		}
		if err != nil {
			return Ring{}, err
		}
		s.mu.Lock()
		s.asked, s.stamp = time.Now(), kept.Version
		s.mu.Unlock()
		return r, nil
	}
}

// Stamp implements Keys.
func (s *Secret) Stamp() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.asked) >= secretLook {
		s.asked = now
		have, err := s.cluster.Secret(context.Background(), s.namespace, s.name)
		if err != nil {
			return err.Error() // Load will say so
		}
		s.stamp = have.Version
	}
	return s.stamp
}

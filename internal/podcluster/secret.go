package podcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxObject is how many bytes of an object are read.
const maxObject = 4 << 20

// What the API server answers about a Secret.
var (
	ErrNotFound  = errors.New("there is no such Secret")
	ErrConflict  = errors.New("somebody else changed the Secret meanwhile")
	ErrForbidden = errors.New("the pod's service account may not do that (RBAC)")
)

// Secret is a Secret of the cluster.
type Secret struct {
	Namespace, Name string
	Version         string // what it was when it was read; empty for one that is to be made
	Labels          map[string]string
	Data            map[string][]byte
}

// object is a Secret as the API has it. What it has beside this is not lost: Put changes only what
// is here.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string][]byte `json:"data"`
}

type metadata struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

// Secret reads a Secret.
func (c *Cluster) Secret(ctx context.Context, namespace, name string) (Secret, error) {
	return c.secret(ctx, http.MethodGet, Secret{Namespace: namespace, Name: name}, path(namespace, name), nil)
}

// PutSecret makes a Secret, or replaces the data of one that is still what it was when it was read.
func (c *Cluster) PutSecret(ctx context.Context, s Secret) (Secret, error) {
	o := object{
		APIVersion: "v1", Kind: "Secret", Data: s.Data,
		Metadata: metadata{Namespace: s.Namespace, Name: s.Name, ResourceVersion: s.Version, Labels: s.Labels},
	}
	if s.Version == "" {
		return c.secret(ctx, http.MethodPost, s, path(s.Namespace, ""), o)
	}
	// A merge patch leaves alone what others put on it; the version in it makes it conditional.
	return c.secret(ctx, http.MethodPatch, s, path(s.Namespace, s.Name), o)
}

func path(namespace, name string) string {
	p := "https://cluster/api/v1/namespaces/" + namespace + "/secrets"
	if name != "" {
		p += "/" + name
	}
	return p
}

func (c *Cluster) secret(ctx context.Context, method string, s Secret, url string, body any) (Secret, error) {
	what := fmt.Sprintf("Secret %s/%s", s.Namespace, s.Name)
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return Secret{}, fmt.Errorf("%s: %w", what, err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(text))
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", what, err)
	}
	r.Header.Set("Accept", "application/json")
	switch method {
	case http.MethodPatch:
		r.Header.Set("Content-Type", "application/merge-patch+json")
	case http.MethodPost:
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := c.Ask(r)
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", what, err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusNotFound:
		return Secret{}, fmt.Errorf("%s: %w", what, ErrNotFound)
	case http.StatusConflict:
		return Secret{}, fmt.Errorf("%s: %w", what, ErrConflict)
	case http.StatusForbidden:
		return Secret{}, fmt.Errorf("%s: %w", what, ErrForbidden)
	default:
		return Secret{}, fmt.Errorf("%s: the API server answered %s", what, res.Status)
	}
	var o object
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxObject))
	if err == nil {
		err = json.Unmarshal(answer, &o)
	}
	if err != nil {
		return Secret{}, fmt.Errorf("%s: the answer cannot be read: %w", what, err)
	}
	return Secret{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name, Version: o.Metadata.ResourceVersion, Labels: o.Metadata.Labels, Data: o.Data}, nil
}

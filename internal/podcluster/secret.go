package podcluster

import (
	"context"
	"fmt"
	"net/http"
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
	return c.secret(ctx, http.MethodGet, Secret{Namespace: namespace, Name: name}, path(namespace, "secrets", name), nil)
}

// PutSecret makes a Secret, or replaces the data of one that is still what it was when it was read.
func (c *Cluster) PutSecret(ctx context.Context, s Secret) (Secret, error) {
	o := object{
		APIVersion: "v1", Kind: "Secret", Data: s.Data,
		Metadata: metadata{Namespace: s.Namespace, Name: s.Name, ResourceVersion: s.Version, Labels: s.Labels},
	}
	if s.Version == "" {
		return c.secret(ctx, http.MethodPost, s, path(s.Namespace, "secrets", ""), o)
	}
	// A merge patch leaves alone what others put on it; the version in it makes it conditional.
	return c.secret(ctx, http.MethodPatch, s, path(s.Namespace, "secrets", s.Name), o)
}

func (c *Cluster) secret(ctx context.Context, method string, s Secret, url string, body any) (Secret, error) {
	var o object
	if err := c.exchange(ctx, fmt.Sprintf("Secret %s/%s", s.Namespace, s.Name), method, url, body, &o); err != nil {
		return Secret{}, err
	}
	return Secret{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name, Version: o.Metadata.ResourceVersion, Labels: o.Metadata.Labels, Data: o.Data}, nil
}

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

// What the API server answers about an object.
var (
	ErrNotFound  = errors.New("there is no such object")
	ErrConflict  = errors.New("somebody else changed it meanwhile")
	ErrForbidden = errors.New("the pod's service account may not do that (RBAC)")
)

// path returns where the objects of a resource are in a namespace, or one of them.
func path(namespace, resource, name string) string {
	p := "https://cluster/api/v1/namespaces/" + namespace + "/" + resource
	if name != "" {
		p += "/" + name
	}
	return p
}

// exchange sends a body, unless it is nil, and reads the answer into another. what names the
// object in errors.
func (c *Cluster) exchange(ctx context.Context, what, method, url string, body, answer any) error {
	if err := c.try(ctx, method, url, body, answer); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (c *Cluster) try(ctx context.Context, method, url string, body, answer any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(text))
	if err != nil {
		return err
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
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusConflict:
		return ErrConflict
	case http.StatusForbidden:
		return ErrForbidden
	default:
		return fmt.Errorf("the API server answered %s", res.Status)
	}
	text, err = io.ReadAll(io.LimitReader(res.Body, maxObject))
	if err == nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		return fmt.Errorf("the answer cannot be read: %w", err)
	}
	return nil
}

package podcluster

import (
	"context"
	"fmt"
	"net/http"
)

// ConfigMap returns the value of one key of a ConfigMap.
func (c *Cluster) ConfigMap(ctx context.Context, namespace, name, key string) ([]byte, error) {
	what := fmt.Sprintf("ConfigMap %s/%s", namespace, name)
	var object struct {
		Data       map[string]string `json:"data"`
		BinaryData map[string][]byte `json:"binaryData"`
	}
	if err := c.exchange(ctx, what, http.MethodGet, path(namespace, "configmaps", name), nil, &object); err != nil {
		return nil, err
	}
	if value, ok := object.Data[key]; ok {
		return []byte(value), nil
	}
	if value, ok := object.BinaryData[key]; ok {
		return value, nil
	}
	return nil, fmt.Errorf("%s has no key %s", what, key)
}

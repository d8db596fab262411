package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"postern.dev/postern/internal/podcluster"
	"postern.dev/postern/internal/wire"
)

// podDir is where a pod finds its service account.
const podDir = podcluster.Dir

// maxObject is how many bytes of an object are read.
const maxObject = 4 << 20

// podCluster is the cluster that the hub itself runs in, in a pod: it asks the API
// server with its own service account. Safe for concurrent use.
type podCluster struct{ cluster *podcluster.Cluster }

// newPodCluster returns the cluster that getenv tells of. dir is podDir but in tests.
func newPodCluster(getenv func(string) string, dir string) *podCluster {
	return &podCluster{podcluster.New(getenv, dir)}
}

// close gives idle connections back.
func (c *podCluster) close() {
	if c != nil {
		c.cluster.Close()
	}
}

// ask sends the API server a request. It is a gateway.Asker.
func (c *podCluster) ask(r *http.Request) (*http.Response, error) {
	if c == nil || !c.cluster.There() {
		return nil, wire.Fail(wire.LegHub, wire.CodeUnreachable, "the hub does not run in a Kubernetes pod").
			WithHint("name an agent of the cluster: --gateway-token-cluster NAME=ORG:AGENT")
	}
	return c.cluster.Ask(r)
}

// configMap returns the value of one key of a ConfigMap.
func (c *podCluster) configMap(ctx context.Context, namespace, name, key string) ([]byte, error) {
	what := fmt.Sprintf("ConfigMap %s/%s", namespace, name)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://cluster/api/v1/namespaces/"+namespace+"/configmaps/"+name, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	res, err := c.ask(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxObject))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case res.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%s: the hub's service account may not get it (RBAC)", what)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: the API server answered %s", what, res.Status)
	}
	var object struct {
		Data       map[string]string `json:"data"`
		BinaryData map[string][]byte `json:"binaryData"`
	}
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, fmt.Errorf("%s: the answer is none: %w", what, err)
	}
	if value, ok := object.Data[key]; ok {
		return []byte(value), nil
	}
	if value, ok := object.BinaryData[key]; ok {
		return value, nil
	}
	return nil, fmt.Errorf("%s has no key %s", what, key)
}

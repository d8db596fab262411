package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern.dev/postern/internal/wire"
)

// podDir is where a pod finds its service account.
const podDir = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	podTime   = 10 * time.Second // for a request and its answer
	maxObject = 4 << 20          // bytes of an object that is read
)

// podCluster is the cluster that the hub itself runs in, in a pod: it asks the API
// server with its own service account. Safe for concurrent use.
type podCluster struct {
	host, port string // of the API server; empty outside of a pod
	dir        string // of the service account
	client     *http.Client
}

// newPodCluster returns the cluster that getenv tells of. dir is podDir but in tests.
func newPodCluster(getenv func(string) string, dir string) *podCluster {
	c := &podCluster{dir: dir}
	if getenv != nil {
		c.host, c.port = getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	}
	c.client = &http.Client{
		Timeout:       podTime,
		Transport:     &http.Transport{DialTLSContext: c.dial, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// dial connects to the API server. What verifies it is read for each connection, since
// it may change.
func (c *podCluster) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	pem, err := os.ReadFile(filepath.Join(c.dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca.crt of the hub's service account holds no certificate")
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: c.host}}
	return d.DialContext(ctx, network, net.JoinHostPort(c.host, c.port))
}

// close gives idle connections back.
func (c *podCluster) close() {
	if c != nil {
		c.client.CloseIdleConnections()
	}
}

// ask sends the API server a request. It is a gateway.Asker.
func (c *podCluster) ask(r *http.Request) (*http.Response, error) {
	if c == nil || c.host == "" {
		return nil, wire.Fail(wire.LegHub, wire.CodeUnreachable, "the hub does not run in a Kubernetes pod").
			WithHint("name an agent of the cluster: --gateway-token-cluster NAME=ORG:AGENT")
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "token")) // it is replaced before it expires
	if err != nil {
		return nil, wire.Fail(wire.LegHub, wire.CodeInternal, "the token of the hub's own service account cannot be read").WithCause(err)
	}
	r.URL.Scheme, r.URL.Host = "https", net.JoinHostPort(c.host, c.port)
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return c.client.Do(r)
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

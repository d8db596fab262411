// Package podcluster asks the API server of the Kubernetes cluster that the process runs in, in a
// pod, as the pod's service account. It knows HTTP and the few fields that it needs: the roles
// carry no library of Kubernetes.
package podcluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Dir is where a pod finds its service account.
const Dir = "/var/run/secrets/kubernetes.io/serviceaccount"

// requestTime bounds a request and its answer.
const requestTime = 10 * time.Second

// ErrNoPod is of a process that does not run in a pod.
var ErrNoPod = errors.New("this is no Kubernetes pod: KUBERNETES_SERVICE_HOST is not set")

// Cluster is the cluster of a pod. It is safe for concurrent use.
type Cluster struct {
	host, port string // of the API server; empty outside of a pod
	dir        string // of the service account
	client     *http.Client
}

// New returns the cluster that the environment tells of; nothing is asked yet. dir is Dir but in
// tests. A nil getenv is no pod.
func New(getenv func(string) string, dir string) *Cluster {
	c := &Cluster{dir: dir}
	if getenv != nil {
		c.host, c.port = getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	}
	c.client = &http.Client{
		Timeout:       requestTime,
		Transport:     &http.Transport{DialTLSContext: c.dial, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// dial connects to the API server. What verifies it is read for each connection, since
// it may change.
func (c *Cluster) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	pem, err := os.ReadFile(filepath.Join(c.dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca.crt of the pod's service account holds no certificate")
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: c.host}}
	return d.DialContext(ctx, network, net.JoinHostPort(c.host, c.port))
}

// There reports whether the process runs in a pod.
func (c *Cluster) There() bool { return c != nil && c.host != "" }

// Close gives idle connections back.
func (c *Cluster) Close() {
	if c != nil {
		c.client.CloseIdleConnections()
	}
}

// Namespace returns the namespace of the pod.
func (c *Cluster) Namespace() (string, error) {
	b, err := os.ReadFile(filepath.Join(c.dir, "namespace"))
	if err != nil {
		return "", fmt.Errorf("the namespace of the pod: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Ask sends the API server a request, whatever host it names, and returns the answer, whose body
// the caller closes. ErrNoPod: there is nobody to ask.
func (c *Cluster) Ask(r *http.Request) (*http.Response, error) {
	if !c.There() {
		return nil, ErrNoPod
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "token")) // it is replaced before it expires
	if err != nil {
		return nil, fmt.Errorf("the token of the pod's service account: %w", err)
	}
	r.URL.Scheme, r.URL.Host = "https", net.JoinHostPort(c.host, c.port)
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return c.client.Do(r)
}

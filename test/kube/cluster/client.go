//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"postern.dev/postern/test/kube/pki"
	"postern.dev/postern/test/kube/proc"
)

// KubectlInside runs kubectl as administrator inside the private network, without any tunnel.
func (c *Cluster) KubectlInside(ctx context.Context, args ...string) (string, error) {
	name, err := c.InsideKubeconfig()
	if err != nil {
		return "", err
	}
	return c.Exec(ctx, c.Kubectl(), append([]string{"--kubeconfig", name, "--cache-dir", c.path("kubectl-cache")}, args...)...)
}

// InsideKubeconfig is a file with a kubeconfig of an administrator inside the private network.
func (c *Cluster) InsideKubeconfig() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := c.path("pki", "inside.kubeconfig")
	if _, err := os.Stat(name); err == nil {
		return name, nil // others may be reading it
	}
	return name, pki.Kubeconfig{Server: c.direct(), CA: c.pki.CertPEM(), Client: c.admin}.WriteFile(name)
}

// Direct is the API server's URL inside, without any tunnel.
func (c *Cluster) Direct() string { return c.direct() }

// AdminKubeconfig is a kubeconfig of an administrator, for use outside: server is the API
// server's URL, and proxyURL the proxy to go through, "" for none.
func (c *Cluster) AdminKubeconfig(server, proxyURL string) pki.Kubeconfig {
	return pki.Kubeconfig{Server: server, ProxyURL: proxyURL, CA: c.pki.CertPEM(), Client: c.admin}
}

// TokenKubeconfig is AdminKubeconfig for the bearer of a token.
func (c *Cluster) TokenKubeconfig(server, proxyURL, token string) pki.Kubeconfig {
	return pki.Kubeconfig{Server: server, ProxyURL: proxyURL, CA: c.pki.CertPEM(), Token: token}
}

// ServiceAccountToken makes a service account, binds it to a cluster role, and returns a token of
// it that lives for an hour.
func (c *Cluster) ServiceAccountToken(ctx context.Context, namespace, name, clusterRole string) (string, error) {
	steps := [][]string{
		{"create", "serviceaccount", name, "-n", namespace},
		{"create", "clusterrolebinding", namespace + "-" + name, "--clusterrole", clusterRole, "--serviceaccount", namespace + ":" + name},
	}
	for _, args := range steps {
		if _, err := c.KubectlInside(ctx, args...); err != nil {
			return "", fmt.Errorf("make the service account %s/%s: %w", namespace, name, err)
		}
	}
	token, err := c.KubectlInside(ctx, "create", "token", name, "-n", namespace, "--duration", time.Hour.String())
	if err != nil {
		return "", fmt.Errorf("make a token of %s/%s: %w", namespace, name, err)
	}
	return strings.TrimSpace(token), nil
}

// waitForAccount waits until pods can be made: the controller manager makes the default account.
func (c *Cluster) waitForAccount(ctx context.Context) error {
	return proc.Wait(ctx, "the default service account exists", func(ctx context.Context) error {
		_, err := c.KubectlInside(ctx, "get", "serviceaccount", "default", "-n", "default")
		return err
	}, c.api)
}
